"""Every formula of app.statistics against its literature's examples and an independent computation."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from app import statistics


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


def test_wilson_of_nothing_is_everything() -> None:
    assert [float(side) for side in statistics.wilson_interval(0, 0)] == [0, 1]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20).filter(lambda v: np.std(v) > 1e-6), levels)
def test_t_interval_equals_scipy(values: list[float], level: float) -> None:
    reference = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert np.allclose(statistics.t_interval(values, level), reference, atol=1e-9)


def test_a_spread_needs_two_values() -> None:
    with pytest.raises(ValueError, match="two"):
        statistics.t_interval([0.9])


def test_quantiles() -> None:
    assert statistics.normal_quantile() == pytest.approx(1.959964, abs=1e-6)
    assert statistics.t_quantile(4) == pytest.approx(2.776445, abs=1e-6)  # any printed t table
    assert statistics.t_quantile(math.inf) == statistics.normal_quantile()


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


@pytest.mark.parametrize(("b", "c", "n"), [(1, 7, 21), (40, 20, 160), (0, 3, 50), (5, 0, 5), (574, 91, 10_000)])
def test_score_interval_equals_restricted_likelihood(b: int, c: int, n: int) -> None:
    """Tango's limits found another way: the multinomial likelihood is maximised numerically under each difference."""

    def statistic(difference: float) -> float:
        def negative_log_likelihood(only_b: float) -> float:
            shares = [only_b + difference, only_b, 1 - 2 * only_b - difference]
            return -float(np.sum(np.array([b, c, n - b - c]) * np.log(np.maximum(shares, 1e-300))))

        bounds = (max(0.0, -difference), (1 - difference) / 2)
        only_b = float(
            optimize.minimize_scalar(
                negative_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-13}
            ).x
        )
        return float((b - c - n * difference) / math.sqrt(n * (2 * only_b + difference - difference**2)))

    z, estimate = float(stats.norm.ppf(0.975)), (b - c) / n
    low, high = (float(side) for side in statistics.paired_interval(b, c, n))
    assert low == pytest.approx(optimize.brentq(lambda d: statistic(d) - z, -1 + 1e-9, estimate - 1e-9), abs=2e-5)
    if estimate < 1:
        assert high == pytest.approx(optimize.brentq(lambda d: statistic(d) + z, estimate + 1e-9, 1 - 1e-9), abs=2e-5)
    else:
        assert high == 1


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


def test_no_number_of_seeds_makes_up_for_images() -> None:
    assert statistics.seeds_needed(0.005, 0.02**2, 0.004**2) is None
    assert statistics.seeds_needed(0.005, 0.0) == 2


def test_false_alarms_of_several_looks() -> None:
    """The table against a simulation of sums of normal values."""
    sums = np.random.default_rng(1).standard_normal((100_000, 10)).cumsum(axis=1) / np.sqrt(np.arange(1, 11))
    alarms = np.maximum.accumulate(np.abs(sums), axis=1) > 1.959964
    found = [statistics.false_alarm_rate(k) for k in range(1, 11)]
    assert alarms.mean(axis=0) == pytest.approx(found, abs=0.004)
    assert statistics.false_alarm_rate(50) == found[-1]


def test_scipy_is_loaded_when_needed_and_never_its_stats() -> None:
    code = (
        "import sys; import app.statistics as s; assert 'scipy' not in sys.modules;"
        "s.mcnemar_p(1, 7); s.seeds_needed(1, 1); assert 'scipy.stats' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
