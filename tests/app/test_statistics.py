"""Every formula of app.statistics against its literature's examples and an independent computation."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn import metrics
from statsmodels.stats import inter_rater, power, proportion, weightstats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from app import statistics
from app.statistics import selection


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    """(only a, only b, number of images)"""
    n = draw(st.integers(1, 20_000))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "interval_coverage.py"
levels = st.sampled_from([0.95, 0.99, 1 - 0.05 / 435])

# Wilson: the four examples of method 3 in Newcombe (1998), Stat. Med. 17, 857-872.


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_examples(correct: int, total: int, low: float, high: float) -> None:
    assert np.round(statistics.wilson_interval(correct, total), 4).tolist() == [low, high]


@given(st.integers(1, 10**6), st.floats(0, 1), levels)
def test_wilson_equals_scipy(total: int, part: float, level: float) -> None:
    correct = round(part * total)
    reference = stats.binomtest(correct, total).proportion_ci(level, method="wilson")
    found = statistics.wilson_interval(correct, total, level)
    assert np.allclose(found, reference, atol=1e-12)
    assert 0 <= found[0] <= correct / total <= found[1] <= 1


def test_wilson_equals_statsmodels() -> None:
    for correct, total in ((81, 263), (9_834, 10_000), (3, 4)):
        reference = proportion.proportion_confint(correct, total, 0.01, method="wilson")
        assert np.allclose(statistics.wilson_interval(correct, total, 0.99), reference, atol=1e-12)


def test_wilson_of_nothing_is_everything() -> None:
    assert [float(side) for side in statistics.wilson_interval(0, 0)] == [0, 1]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20).filter(lambda v: np.std(v) > 1e-6), levels)
def test_t_interval_equals_scipy(values: list[float], level: float) -> None:
    reference = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert np.allclose(statistics.t_interval(values, level), reference, atol=1e-9)


ACCURACIES = ([0.971, 0.975, 0.968, 0.981, 0.973], [0.966, 0.97, 0.969, 0.972, 0.961])  # of five seeds each


def test_t_interval_equals_statsmodels() -> None:
    reference = weightstats.DescrStatsW(ACCURACIES[0]).tconfint_mean(0.05)
    assert np.allclose(statistics.t_interval(ACCURACIES[0]), reference, atol=1e-12)


def test_a_spread_needs_two_values() -> None:
    with pytest.raises(ValueError, match="two"):
        statistics.t_interval([0.9])


def test_quantiles() -> None:
    assert statistics.normal_quantile() == pytest.approx(1.959964, abs=1e-6)
    assert statistics.t_quantile(4) == pytest.approx(2.776445, abs=1e-6)  # any printed t table
    assert statistics.t_quantile(math.inf) == statistics.normal_quantile()
    assert statistics.t_p_value(2.776445, 4) == statistics.t_p_value(-2.776445, 4) == pytest.approx(0.05, abs=1e-6)


# McNemar: 1 against 7 of Bentur et al. (2009), p 0.0703 in Fagerland, Lydersen, Laake (2013), BMC Med. Res. Methodol. 13:91.


def test_mcnemar_examples() -> None:
    found = statistics.mcnemar_p([1, 0, 5, 574, 358, 393], [7, 0, 5, 91, 307, 394])
    assert found[:3] == pytest.approx([0.0703125, 1, 1])
    assert found[3] == pytest.approx(1.4e-86, rel=0.05)
    assert 0.05 < found[4] < 0.053
    assert found[5] == 1


@given(st.integers(0, 900), st.integers(0, 900))
def test_mcnemar_equals_scipy(b: int, c: int) -> None:
    found = float(statistics.mcnemar_p(b, c))
    if b + c:
        assert found == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9, abs=1e-300)
    assert found == float(statistics.mcnemar_p(c, b))
    assert 0 <= found <= 1


def test_mcnemar_equals_statsmodels() -> None:
    for b, c in ((1, 7), (40, 20), (358, 307), (5, 5)):
        reference = mcnemar(np.array([[100, b], [c, 30]]), exact=True).pvalue
        assert float(statistics.mcnemar_p(b, c)) == pytest.approx(reference, rel=1e-9)


def test_holm_equals_statsmodels() -> None:
    p = [0.01, 0.02, 0.03, 0.04, 0.011, 0.5, 0.9, 0.0002]
    assert np.allclose(statistics.holm(p), multipletests(p, method="holm")[1])


def test_holm_example() -> None:
    """Worked by hand: 0.01 x 3, 0.02 x 2, then 0.03 x 1 lifted to the one before."""
    assert statistics.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holm_bounds(p: list[float]) -> None:
    adjusted = statistics.holm(p)
    assert np.all(adjusted >= np.array(p))
    assert np.all(adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-15)
    assert np.all(np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0)


# Paired intervals: airway hyper-responsiveness before and after transplantation (1, 7 of 21), table IV of M. W. Fagerland,
# S. Lydersen, P. Laake (2014), Stat. Med. 33, 2850-2875.


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("Wald", -0.520, -0.052),
        ("Bonett-Price", -0.508, -0.013),
        ("Newcombe", -0.507, -0.026),
        ("Tango", -0.517, -0.026),
    ],
)
def test_paired_interval_examples(method: str, low: float, high: float) -> None:
    candidate = runpy.run_path(str(BENCHMARK))["METHODS"][method]
    found = candidate(*(np.array(v, float) for v in (1, 1, 7)), 21, 0.95)
    assert np.round(found, 3).tolist() == [low, high]


@pytest.mark.parametrize(
    ("b", "c", "low", "high"), [(574, 91, 4.34, 5.34), (393, 394, -0.56, 0.54), (358, 307, 0.00, 1.02)]
)
def test_paired_interval_of_real_nets(b: int, c: int, low: float, high: float) -> None:
    found = np.array(statistics.paired_interval(b, c, 10_000)) * 100
    assert np.round(found, 2).tolist() == [low, high]


@given(tables(), levels)
def test_paired_interval_holds_the_difference_and_mirrors(table: tuple[int, int, int], level: float) -> None:
    b, c, n = table
    low, high = (float(side) for side in statistics.paired_interval(b, c, n, level))
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert [float(side) for side in statistics.paired_interval(c, b, n, level)] == [-high, -low]


def score_by_likelihood(b: int, c: int, n: int, difference: float) -> float:
    """Tango's statistic found another way: the multinomial likelihood is maximised numerically under the difference."""

    def negative_log_likelihood(only_b: float) -> float:
        shares = [only_b + difference, only_b, 1 - 2 * only_b - difference]
        return -float(np.sum(np.array([b, c, n - b - c]) * np.log(np.maximum(shares, 1e-300))))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    only_b = float(
        optimize.minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    )
    return float((b - c - n * difference) / math.sqrt(n * (2 * only_b + difference - difference**2)))


@pytest.mark.parametrize(("b", "c", "n"), [(1, 7, 21), (40, 20, 160), (0, 3, 50), (5, 0, 5), (574, 91, 10_000)])
def test_score_interval_equals_restricted_likelihood(b: int, c: int, n: int) -> None:
    z, estimate = float(stats.norm.ppf(0.975)), (b - c) / n
    low, high = (float(side) for side in statistics.paired_interval(b, c, n))

    def above(difference: float) -> float:
        return score_by_likelihood(b, c, n, difference) - z

    def below(difference: float) -> float:
        return score_by_likelihood(b, c, n, difference) + z

    assert low == pytest.approx(optimize.brentq(above, -1 + 1e-9, estimate - 1e-9), abs=2e-5)
    if estimate < 1:
        assert high == pytest.approx(optimize.brentq(below, estimate + 1e-9, 1 - 1e-9), abs=2e-5)
    else:
        assert high == 1


@pytest.mark.parametrize(
    ("b", "c", "n"), [(40, 20, 160), (20, 40, 160), (60, 10, 160), (4, 9, 1000), (393, 394, 10_000)]
)
@pytest.mark.parametrize("margin", [0.005, 0.02, 0.2])
def test_tost_of_a_pair_equals_restricted_likelihood(b: int, c: int, n: int, margin: float) -> None:
    lower = stats.norm.sf(score_by_likelihood(b, c, n, -margin))
    upper = stats.norm.cdf(score_by_likelihood(b, c, n, margin))
    assert float(statistics.tost_paired(b, c, n, margin)) == pytest.approx(max(lower, upper), rel=1e-4, abs=1e-9)


@given(tables(), st.floats(0.001, 0.5), st.sampled_from([0.05, 0.01, 0.2]))
def test_tost_of_a_pair_agrees_with_its_interval(table: tuple[int, int, int], margin: float, alpha: float) -> None:
    b, c, n = table
    p = float(statistics.tost_paired(b, c, n, margin))
    low, high = (float(side) for side in statistics.paired_interval(b, c, n, 1 - 2 * alpha))
    if abs(p - alpha) > 1e-9:
        assert (p <= alpha) == (-margin < low and high < margin)
    assert p == float(statistics.tost_paired(c, b, n, margin))


def test_tost_finds_no_equivalence_at_the_margin_more_often_than_it_may() -> None:
    """True differences of exactly one margin: equivalence at 0.05 in about 5 % of the draws."""
    random = np.random.default_rng(0)
    b, c, _rest = random.multinomial(40_000, [0.06, 0.05, 0.89], size=20_000).T
    assert (statistics.tost_paired(b, c, 40_000, 0.01) <= 0.05).mean() == pytest.approx(0.05, abs=0.006)


def test_a_margin_must_be_one() -> None:
    for margin in (0, -0.1, 1, math.nan):
        with pytest.raises(ValueError, match="margin"):
            statistics.tost_paired(1, 1, 10, margin)
    for margin in (0, -0.1, math.nan):
        with pytest.raises(ValueError, match="margin"):
            statistics.tost_seeds(0.0, 1.0, 4, margin)


def test_margin_can_be_shown_from_that_number_of_images_on() -> None:
    fewest = statistics.fewest_images_for_margin(0.005)
    assert fewest == math.ceil(3.8415 * 0.995 / 0.005) == 765
    assert statistics.paired_interval(0, 0, fewest)[1] <= 0.005
    assert statistics.paired_interval(0, 0, fewest - 1)[1] > 0.005
    assert statistics.fewest_images_for_margin(0.005, 0.99) > fewest


def test_numbers_of_the_inconclusive_pair() -> None:
    """787 disagreements of 10,000: 0.8 points found 4 times in 5; about 12,000 images for ± 0.5, 76,000 for ± 0.2."""
    assert float(statistics.smallest_detectable_difference(787, 10_000)) == pytest.approx(0.0079, abs=1e-4)
    assert float(statistics.images_needed(787, 0.0001, 10_000, 0.005)) == pytest.approx(12_000, rel=0.01)
    assert float(statistics.images_needed(787, 0.0001, 10_000, 0.002)) == pytest.approx(76_000, rel=0.01)


def test_images_needed_give_that_interval() -> None:
    """With so many images the normal interval is just as wide as asked for; one image fewer and it is wider."""
    share, difference, margin = 0.3, 0.2, 0.03
    n = int(statistics.images_needed(300, difference, 1000, margin))
    half = [1.959964 * math.sqrt((share - difference**2) / m) for m in (n, n - 1)]
    assert half[0] <= margin < half[1]


def test_smallest_detectable_difference_equals_connors_formula() -> None:
    """The difference put back into Connor's number of pairs gives the number that it was found for."""
    for d, n in ((0.3, 200), (0.08, 10_000)):
        x = float(statistics.smallest_detectable_difference(d * n, n))
        pairs = ((stats.norm.ppf(0.975) * math.sqrt(d) + stats.norm.ppf(0.8) * math.sqrt(d - x**2)) / x) ** 2
        assert pairs == pytest.approx(n, rel=1e-9)


def test_smallest_detectable_difference_has_its_power() -> None:
    """The exact test finds a little less than the 80 % of the normal formula."""
    random = np.random.default_rng(0)
    d, n = 0.08, 10_000
    x = float(statistics.smallest_detectable_difference(d * n, n))
    b, c, _rest = random.multinomial(n, [(d + x) / 2, (d - x) / 2, 1 - d], size=20_000).T
    assert (statistics.mcnemar_p(b, c) <= 0.05).mean() == pytest.approx(0.79, abs=0.02)


def test_nothing_can_be_found_where_too_few_disagree() -> None:
    assert np.isnan(statistics.smallest_detectable_difference([0, 3], 10_000)).all()


# Recipes

seeds = st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda v: np.std(v) > 1e-3)


@given(seeds, st.data())
def test_paired_t_equals_scipy(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.floats(0, 1), min_size=len(a), max_size=len(a)))
    if np.std(np.subtract(a, b)) < 1e-3:
        return
    test = statistics.paired_t(a, b)
    reference = stats.ttest_rel(a, b)
    assert statistics.t_p_value(test.difference / math.sqrt(test.squared_error), test.df) == pytest.approx(
        reference.pvalue
    )
    found = statistics.recipe_interval(test, 0.0, 1000)
    assert np.allclose([found.low, found.high], reference.confidence_interval(), atol=1e-9)
    assert found.p_value == pytest.approx(reference.pvalue)


@given(seeds, seeds)
def test_welch_equals_scipy(a: list[float], b: list[float]) -> None:
    test = statistics.welch_t(a, b)
    reference = stats.ttest_ind(a, b, equal_var=False)
    assert test.df == pytest.approx(reference.df)
    found = statistics.recipe_interval(test, 0.0, 1000)
    assert np.allclose([found.low, found.high], reference.confidence_interval(), atol=1e-9)


def _of_recipes(test: statistics.SeedTest) -> list[float]:
    found = statistics.recipe_interval(test, 0.0, 10_000)
    return [found.difference, found.low, found.high, found.p_value]


def test_seed_tests_equal_statsmodels() -> None:
    a, b = (np.array(v) for v in ACCURACIES)
    paired = weightstats.DescrStatsW(a - b)
    reference = [paired.mean, *paired.tconfint_mean(), paired.ttest_mean()[1]]
    assert np.allclose(_of_recipes(statistics.paired_t(a.tolist(), b.tolist())), reference)
    both = weightstats.CompareMeans.from_data(a, b[:3])
    reference = [
        a.mean() - b[:3].mean(),
        *both.tconfint_diff(usevar="unequal"),
        both.ttest_ind(usevar="unequal")[1],
    ]
    assert np.allclose(_of_recipes(statistics.welch_t(a.tolist(), b[:3].tolist())), reference)


@pytest.mark.parametrize("margin", [0.004, 0.01, 0.03])
def test_tost_of_seeds_equals_statsmodels(margin: float) -> None:
    a, b = (np.array(v) for v in ACCURACIES)
    paired, welch = statistics.paired_t(a.tolist(), b.tolist()), statistics.welch_t(b[:3].tolist(), a.tolist())
    reference = weightstats.ttost_paired(a, b, -margin, margin)[0]
    assert statistics.tost_seeds(paired.difference, paired.squared_error, paired.df, margin) == pytest.approx(reference)
    reference = weightstats.ttost_ind(b[:3], a, -margin, margin, usevar="unequal")[0]
    assert statistics.tost_seeds(welch.difference, welch.squared_error, welch.df, margin) == pytest.approx(reference)


def test_tost_of_seeds_at_its_limits() -> None:
    assert statistics.tost_seeds(0.01, 0.0, 4, 0.02) == 0
    assert statistics.tost_seeds(-0.02, 0.0, 4, 0.02) == 1
    assert statistics.tost_seeds(0.0, 1.0, math.inf, 1.959964) == pytest.approx(0.025, abs=1e-6)


def test_the_images_variance_is_added_to_the_seeds() -> None:
    """By hand: errors 4e-6 (4 degrees of freedom) and 12e-6 (999): 4.0 ** 2 / (1 / 4 + 9 / 999) = 61.8 of them."""
    found = statistics.recipe_interval(statistics.SeedTest(0.01, 4e-6, 4), 12e-6, 1000)
    df = 16e-6**2 / (4e-6**2 / 4 + 12e-6**2 / 999)
    assert df == pytest.approx(61.8, abs=0.1)
    assert np.allclose([found.low, found.high], stats.t.interval(0.95, df, 0.01, 4e-3))
    assert found.p_value == pytest.approx(2 * stats.t.sf(2.5, df))


@given(st.floats(-0.1, 0.1), st.floats(0, 1e-3), st.integers(1, 20), st.floats(0, 1e-3), levels)
def test_recipe_interval_is_the_wider_and_agrees_with_its_p(
    difference: float, seed_error: float, df: int, image_error: float, level: float
) -> None:
    test = statistics.SeedTest(difference, seed_error, df)
    found = statistics.recipe_interval(test, image_error, 1000, level)
    seeds_only = statistics.t_quantile(df, level) * math.sqrt(seed_error)
    assert found.high - found.low >= 2 * seeds_only - 1e-12
    assert found.low <= difference <= found.high
    if abs(found.p_value - (1 - level)) > 1e-9:
        assert (found.p_value <= 1 - level) == (found.low > 0 or found.high < 0)


def test_images_widen_where_seeds_hardly_differ() -> None:
    test = statistics.paired_t([0.90, 0.91, 0.92], [0.80, 0.81, 0.82001])
    assert statistics.recipe_interval(test, 1e-4, 1000).from_images
    assert not statistics.recipe_interval(test, 0.0, 1000).from_images


def test_seeds_without_any_spread() -> None:
    same = statistics.paired_t([0.5, 0.5], [0.5, 0.5])
    assert statistics.recipe_interval(same, 0.0, 1).p_value == 1
    other = statistics.paired_t([0.75, 0.75], [0.5, 0.5])
    assert statistics.recipe_interval(other, 0.0, 1).p_value == 0
    assert statistics.welch_t([0.5, 0.5], [0.5, 0.5, 0.5]).df == 1


@pytest.mark.parametrize(
    ("effect", "variance", "df_per_seed", "seeds"), [(0.5, 1.0, 1.0, 34), (0.5, 2.0, 2.0, 64), (0.8, 2.0, 2.0, 26)]
)
def test_seeds_needed_equals_cohens_tables(effect: float, variance: float, df_per_seed: float, seeds: int) -> None:
    """One sample d = 0.5: 34; two samples d = 0.5: 64 each, d = 0.8: 26 each (Cohen 1988, table 2.4.1)."""
    assert statistics.seeds_needed(effect, variance, df_per_seed=df_per_seed) == seeds


def test_seeds_needed_equals_statsmodels() -> None:
    """Compared is the power, at the number found and at one seed fewer, with the one of statsmodels."""
    for effect, one in ((0.9, True), (1.3, True), (0.7, False)):
        n = statistics.seeds_needed(effect, 1.0 if one else 2.0, df_per_seed=1.0 if one else 2.0)
        assert n is not None
        solver = power.TTestPower() if one else power.TTestIndPower()
        found = [float(solver.power(effect, m, 0.025, alternative="larger")) for m in (n, n - 1)]
        assert found[0] >= 0.8 > found[1]


def test_no_number_of_seeds_makes_up_for_images() -> None:
    assert statistics.seeds_needed(0.005, 0.02**2, 0.004**2) is None
    assert statistics.seeds_needed(0.005, 0.0) == 2


def test_false_alarms_of_several_looks() -> None:
    """The table against the integral, look by look, over the sums that have not crossed yet (Gauss and Legendre)."""
    points, weights = np.polynomial.legendre.leggauss(120)
    critical = stats.norm.ppf(0.975)
    sums, kept = points * critical, weights * critical
    density = stats.norm.pdf(sums)
    alarms = [1 - density @ kept]
    for looks in range(2, 11):
        wider = points * critical * math.sqrt(looks)
        density = stats.norm.pdf(wider[:, None] - sums) @ (density * kept)
        sums, kept = wider, weights * critical * math.sqrt(looks)
        alarms.append(1 - density @ kept)
    found = [statistics.false_alarm_rate(k) for k in range(1, 11)]
    assert np.round(alarms, 3).tolist() == found
    assert statistics.false_alarm_rate(50) == found[-1]


# Confidences


def unsure(random: np.random.Generator, n: int, shift: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences [n], right or wrong [n], and the chance of being right [n]; confidences are exact where shift is 0."""
    logit = random.normal(2, 1.5, n)
    sure, chance = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(shift - logit))
    return sure, random.random(n) < chance, chance


def calibration_by_loops(sure: np.ndarray, right: np.ndarray) -> list[float]:
    """Value, low, high at 0.95, for confidences all different: sorted, cut, and the rest by scipy.stats."""
    n = len(sure)
    count = round(1.5 * n ** (1 / 3))
    order = np.argsort(sure)
    cuts = [k * n // count for k in range(count + 1)]
    value = surprise = allowance = 0.0
    signed = np.zeros(n)
    within = 0.0
    for start, stop in pairwise(cuts):
        chosen = order[start:stop]
        off = right[chosen].astype(float) - sure[chosen]
        gap, variance, m = off.mean(), off.var(ddof=1), len(chosen)
        error = math.sqrt(variance / m)
        expected = stats.foldnorm.mean(abs(gap) / error, scale=error) if error else abs(gap)
        value += m / n * (abs(gap) - (expected - abs(gap)))
        signed[chosen] = abs(gap)
        within += m / n * variance
        allowance += m / n * error * 0.0936
        surprise += m * gap**2 / max(variance, np.mean(sure[chosen] * (1 - sure[chosen])))
    z = stats.norm.ppf(0.975)
    half = z * math.sqrt((within + signed.var()) / n + (z / (2 * n)) ** 2)
    value = max(value, 0)
    low = 0.0 if stats.chi2.sf(surprise, count) >= 0.025 else max(value - half, 0)
    return [value, low, value + half + allowance]


@pytest.mark.parametrize(("n", "shift"), [(100, 0.0), (100, 1.5), (1000, 0.6), (10_000, 0.3), (10_000, -0.5)])
def test_calibration_error_equals_a_loop_over_sorted_images(n: int, shift: float) -> None:
    sure, right, _chance = unsure(np.random.default_rng(n), n, shift)
    found = statistics.calibration_error(sure, right)
    assert np.allclose([found.value, found.low, found.high], calibration_by_loops(sure, right), rtol=1e-9, atol=1e-12)


def test_calibration_error_by_hand() -> None:
    """Images of one confidence share a bin: 0.9 and three of four right, twice as sure as it should be at 0.6."""
    sure = np.array([0.9] * 400 + [0.6] * 400)
    right = np.array([True, True, True, False] * 100 + [True, False, False, False, False, True, False, False] * 50)
    found = statistics.calibration_error(sure, right)
    assert found.value == pytest.approx(0.15 / 2 + 0.35 / 2, abs=1e-6)  # nothing to take off: far from 0 in both bins
    shuffled = np.random.default_rng(0).permutation(800)
    again = statistics.calibration_error(sure[shuffled], right[shuffled])
    assert np.allclose([again.value, again.low, again.high], [found.value, found.low, found.high], rtol=1e-12)


def test_calibration_error_is_debiased_and_its_interval_holds() -> None:
    """2,000 images, 300 draws for each of four true errors."""
    random = np.random.default_rng(3)
    for shift in (-0.6, 0.4, 0.8, 1.3):
        sure, _right, chance = unsure(random, 1_000_000, shift)
        truth = float(np.abs(sure - chance).mean())
        found = [statistics.calibration_error(*unsure(random, 2000, shift)[:2]) for _draw in range(300)]
        assert np.mean([e.value for e in found]) == pytest.approx(truth, abs=0.0025)
        assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.93
        assert np.mean([e.high - e.low for e in found]) < 0.05


def test_exact_confidences_are_not_called_wrong() -> None:
    """300 draws of 1,000 images: the interval reaches 0, and at least a third of what chance alone finds is taken off."""
    random = np.random.default_rng(4)
    draws = [unsure(random, 1000, 0.0)[:2] for _draw in range(300)]
    found = [statistics.calibration_error(*draw) for draw in draws]
    assert np.mean([e.low == 0 for e in found]) >= 0.95
    plain = []
    for sure, right in draws:
        order = np.argsort(sure)
        plain.append(np.mean([abs(part.mean()) for part in np.array_split((right - sure)[order], 15)]))
    assert np.mean([e.value for e in found]) < 2 / 3 * np.mean(plain)


def test_calibration_error_of_few_images() -> None:
    with pytest.raises(ValueError, match="images"):
        statistics.calibration_error([], [])
    for sure, right in (([1.0], [True]), ([0.5], [False]), ([1.0, 1.0], [True, True]), ([0.7] * 5, [True] * 5)):
        found = statistics.calibration_error(sure, right)
        assert 0 <= found.low <= found.value <= found.high <= 1


# Agreement

DIAGNOSES = [[75, 1, 4], [5, 4, 1], [0, 0, 10]]  # two raters, 100 patients: Fleiss, Levin, Paik (2003), table 18.1


def answers_of(table: list[list[int]] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The answers [N] of both raters from the table of their counts."""
    counts = np.asarray(table)
    a, b = np.indices(counts.shape)
    return np.repeat(a.ravel(), counts.ravel()), np.repeat(b.ravel(), counts.ravel())


def test_kappa_equals_the_book_statsmodels_and_sklearn() -> None:
    random = np.random.default_rng(0)
    many = random.multinomial(3000, random.dirichlet(np.ones(49) / 2)).reshape(7, 7) + np.eye(7, dtype=int) * 300
    for table in (DIAGNOSES, [[20, 5], [10, 15]], many.tolist()):
        a, b = answers_of(table)
        found, reference = statistics.kappa(a, b), inter_rater.cohens_kappa(np.array(table))
        assert found.value == pytest.approx(reference.kappa)
        assert found.value == pytest.approx(metrics.cohen_kappa_score(a, b))
        assert found.standard_error == pytest.approx(reference.std_kappa)
        assert found.agreement == np.trace(np.array(table)) / np.sum(table)
        assert (found.low, found.high) == pytest.approx(
            (reference.kappa_low, reference.kappa_upp), abs=reference.std_kappa / 2
        )
        assert found.low < found.value < found.high
    assert round(statistics.kappa(*answers_of(DIAGNOSES)).value, 2) == 0.68
    assert statistics.kappa(*answers_of([[20, 5], [10, 15]])).value == pytest.approx(0.4)  # 0.7 where chance gives 0.5


def test_interval_of_kappa_by_hand() -> None:
    """Both marginal distributions even: kappa is 2 x agreement - 1, so its interval is Wilson's stretched."""
    found = statistics.kappa(*answers_of([[45, 5], [5, 45]]))
    low, high = proportion.proportion_confint(90, 100, method="wilson")
    assert [found.value, found.low, found.high] == pytest.approx([0.8, 2 * low - 1, 2 * high - 1])
    assert found.standard_error == pytest.approx(2 * math.sqrt(0.9 * 0.1 / 100))


def test_kappa_of_identical_and_of_opposite_answers() -> None:
    same = statistics.kappa([0, 1, 2] * 50, [0, 1, 2] * 50)
    assert (same.value, same.high, same.agreement) == (1, 1, 1)
    assert 0.95 < same.low < 1
    assert statistics.kappa([3] * 9, [3] * 9) == statistics.Kappa(1, 1, 1, 1, 0)
    opposite = statistics.kappa([0, 1] * 50, [1, 0] * 50)
    assert (opposite.value, opposite.low, opposite.agreement) == (-1, -1, 0)
    with pytest.raises(ValueError, match="images"):
        statistics.kappa([], [])


# Classes, votes, the best of several


def test_class_differences_equal_one_class_at_a_time() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 500)
    a, b = random.random(500) < 0.9, random.random(500) < 0.8
    found = statistics.class_differences(labels, a, b, 5, 0.99)
    for k in range(4):
        own = labels == k
        n, right_a, right_b = own.sum(), a[own], b[own]
        assert (found.num_images[k], found.accuracy_a[k], found.accuracy_b[k]) == (n, right_a.mean(), right_b.mean())
        b_count, c_count = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        assert found.low[k] == pytest.approx(statistics.paired_interval(b_count, c_count, n, 0.99)[0])
        z = score_by_likelihood(b_count, c_count, int(n), float(found.high[k]))
        assert z == pytest.approx(stats.norm.ppf(0.005), abs=0.01)
    assert found.num_images.tolist()[4] == 0
    assert np.isnan([found.accuracy_a[4], found.accuracy_b[4]]).all()
    assert (found.low[4], found.high[4]) == (-1, 1)


def test_a_class_must_be_one_of_the_classes() -> None:
    with pytest.raises(ValueError, match="class"):
        statistics.class_differences([0, 3], [True, True], [True, True], 3)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_majority_vote_equals_scipys_mode(runs: int, classes: int, seed: int) -> None:
    predicted = np.random.default_rng(seed).integers(0, classes, (runs, 40))
    found = statistics.majority_vote(predicted)
    assert found.tolist() == stats.mode(predicted, axis=0).mode.tolist()  # the smallest of several modes
    assert statistics.majority_vote(predicted[::-1]).tolist() == found.tolist()


def test_majority_vote_examples() -> None:
    assert statistics.majority_vote([[2, 1, 0, 3], [2, 0, 1, 3], [1, 1, 2, 3]]).tolist() == [2, 1, 0, 3]
    assert statistics.majority_vote([[1, 4], [0, 3], [1, 4], [0, 3], [5, 3]]).tolist() == [0, 3]
    assert statistics.majority_vote(np.zeros((3, 0), np.int64)).tolist() == []


def optimism_by_loops(right: np.ndarray, draws: int) -> float:
    random, (_runs, n) = np.random.default_rng(99), right.shape
    drops = []
    for _draw in range(draws):
        order = random.permutation(n)
        first, second = right[:, order[: n // 2]].mean(axis=1), right[:, order[n // 2 :]].mean(axis=1)
        best = int(np.argmax(first))
        drops.append(first[best] - second[best])
    return float(np.mean(drops))


@pytest.mark.parametrize(("runs", "n"), [(1, 100), (2, 75), (10, 500), (30, 2001)])
def test_optimism_equals_a_loop_over_other_halves(runs: int, n: int) -> None:
    right = np.random.default_rng(runs).random((runs, n)) < 0.9
    spread = 2 * math.sqrt(0.09 / n)  # of one drop
    assert statistics.best_of_n_optimism(right) == pytest.approx(
        optimism_by_loops(right, 4000), abs=4 * spread * math.sqrt(1 / 1000 + 1 / 4000)
    )
    assert statistics.best_of_n_optimism(right) == statistics.best_of_n_optimism(right)


def test_optimism_of_equally_good_runs() -> None:
    """Mean over worlds: 1.41 x 1.54 standard errors, 1.54 being the mean of the largest of ten normal values."""
    random, n = np.random.default_rng(5), 1000
    found = [statistics.best_of_n_optimism(random.random((10, n)) < 0.8) for _world in range(200)]
    assert np.mean(found) == pytest.approx(math.sqrt(2) * 1.5388 * math.sqrt(0.16 / n), rel=0.05)


def test_optimism_where_it_is_known() -> None:
    assert statistics.best_of_n_optimism([[True, False], [False, True]]) == 1  # the one right on the first, wrong then
    assert statistics.best_of_n_optimism(np.ones((3, 10), bool)) == 0
    clear = np.array([[True] * 60 + [False] * 40, [False] * 100])
    assert abs(statistics.best_of_n_optimism(clear)) < 0.01
    with pytest.raises(ValueError, match="two"):
        statistics.best_of_n_optimism([[True]])


@pytest.mark.parametrize("n", [2, 3, 64, 101])
def test_halves_are_halves_and_treat_all_images_alike(n: int) -> None:
    bits = np.unpackbits(selection._halves(n).view(np.uint8), axis=1)[:, :n]
    assert bits.shape == (1000, n)
    assert (bits.sum(axis=1) == n // 2).all()
    assert bits.mean(axis=0) == pytest.approx(n // 2 / n, abs=5 * math.sqrt(0.25 / 1000))


def test_scipy_is_loaded_when_needed_and_never_its_stats() -> None:
    code = (
        "import sys; import app.statistics as s; assert 'scipy' not in sys.modules;"
        "s.mcnemar_p(1, 7); s.seeds_needed(1, 1); assert 'scipy.stats' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
