"""Statistics as pure functions over arrays: intervals, exact tests, power. Each names its source.

What a result means, in words, is ``app.compare.comparison``'s. ``scipy.special`` is imported when first needed (``scipy.stats``
costs a second and 60 MB). Methods that the coverage simulation did not choose live in benchmarks/interval_coverage.py.
Unless said otherwise arguments may be numbers or arrays that broadcast, and results are float64.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
POWER = 0.8
_MOST_SEEDS = 1000
_HALVES = 1000
_OVERCORRECTION = 0.0936  # largest, in standard errors of a bin: see calibration_error


def _special() -> Any:
    import scipy.special

    return scipy.special


def normal_quantile(level: float = LEVEL) -> float:
    """z of a two-sided interval: 1.96 at 0.95."""
    return float(_special().ndtri(0.5 + level / 2))


def t_quantile(df: float, level: float = LEVEL) -> float:
    """t of a two-sided interval with ``df`` degrees of freedom (need not be whole); infinite ``df`` gives z."""
    return float(_special().stdtrit(df, 0.5 + level / 2)) if math.isfinite(df) else normal_quantile(level)


def t_p_value(t: float, df: float) -> float:
    """Two-sided p of a t statistic."""
    return min(1.0, 2 * float(_special().stdtr(df, -abs(t))))


# One proportion, several seeds ---------------------------------------------------------------------------------------


def wilson_interval(correct: ArrayLike, total: ArrayLike, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Score interval of a proportion: (low, high) in 0..1; (0, 1) where total is 0.

    Source: E. B. Wilson (1927), J. Am. Stat. Assoc. 22, 209-212; method 3 of R. G. Newcombe (1998), Stat. Med. 17, 857.
    """
    x, n = np.asarray(correct, np.float64), np.asarray(total, np.float64)
    z2 = normal_quantile(level) ** 2
    centre = (x + z2 / 2) / (n + z2)
    half = np.sqrt(z2) / (n + z2) * np.sqrt(x * (n - x) / np.maximum(n, 1) + z2 / 4)
    low = np.where(x == 0, 0.0, centre - half)
    high = np.where(x == n, 1.0, centre + half)
    return low, high


def t_interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Interval of the mean of ``values`` [S >= 2], from their spread: mean ± t sd / sqrt(S).

    Source: Student (1908), Biometrika 6, 1-25. Raises ``ValueError`` for fewer than 2 values.
    """
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        raise ValueError("a spread needs two values")
    half = t_quantile(len(x) - 1, level) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return float(x.mean()) - half, float(x.mean()) + half


# Two runs over the same images ---------------------------------------------------------------------------------------


def mcnemar_p(only_a: ArrayLike, only_b: ArrayLike) -> Floats:
    """Exact two-sided p that the images on which one run only is right split evenly; 1 where there are none.

    The binomial tail at 1/2, doubled, at most 1. Source: Q. McNemar (1947), Psychometrika 12, 153-157; exact form:
    F. Mosteller (1952), Biometrics 8, 220-226. Below 1e-300 it may be 0.
    """
    b, c = np.asarray(only_a, np.int64), np.asarray(only_b, np.int64)
    tail = _special().bdtr(np.minimum(b, c).astype(np.float64), b + c, 0.5)
    return np.asarray(np.minimum(1.0, 2 * tail), np.float64)


def holm(p_values: ArrayLike) -> Floats:
    """p values [m] adjusted for being m: the chance of one false alarm in the family stays below the level.

    Source: S. Holm (1979), Scand. J. Stat. 6, 65-70.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    rising = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty_like(p)
    adjusted[order] = rising
    return adjusted


def paired_interval(
    only_a: ArrayLike, only_b: ArrayLike, num_images: ArrayLike, level: float = LEVEL
) -> tuple[Floats, Floats]:
    """Interval (low, high) of accuracy of a minus accuracy of b over the same images, in -1..1.

    Score interval: all differences that the score test would not refuse. Source: T. Tango (1998), Stat. Med. 17,
    891-908. ``num_images`` must be at least 1. Swapping a and b mirrors the interval exactly.
    """
    b, c, n = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (only_a, only_b, num_images)))
    z = normal_quantile(level)
    return -_score_limit(c, b, n, z), _score_limit(b, c, n, z)


def _score_limit(b: Floats, c: Floats, n: Floats, z: float) -> Floats:
    """The difference above (b - c) / n at which the score statistic is -z; bisection, as it falls all the way."""
    low, high = (b - c) / n, np.ones_like(n)
    for _step in range(60):
        middle = (low + high) / 2
        inside = _score(b, c, n, middle) > -z
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return high


def _score(b: Floats, c: Floats, n: Floats, difference: Floats) -> Floats:
    """Tango's statistic: (b - c - n d) over its standard error under difference d, by restricted maximum likelihood."""
    d = difference
    linear = (2 * n - b + c) * d - b - c
    q = (np.sqrt(linear**2 + 8 * n * c * d * (1 - d)) - linear) / (4 * n)  # likeliest share of "only b" given d
    variance = np.maximum(n * (2 * q + d * (1 - d)), 1e-300)
    return np.asarray((b - c - n * d) / np.sqrt(variance), np.float64)


def tost_paired(only_a: ArrayLike, only_b: ArrayLike, num_images: ArrayLike, margin: float) -> Floats:
    """p that two runs differ by ``margin`` or more over the same images: small where they are equivalent within it.

    Two one-sided score tests, the larger p: at most alpha just when ``paired_interval`` of level 1 - 2 alpha lies inside
    the margin. Sources: D. J. Schuirmann (1987), J. Pharmacokinet. Biopharm. 15, 657-680; T. Tango (1998), Stat. Med.
    17, 891-908. ``num_images`` must be at least 1. Raises ``ValueError`` for a margin not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ValueError("the margin lies between 0 and 1")
    b, c, n = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (only_a, only_b, num_images)))
    d = np.full(n.shape, margin)
    return np.asarray(_special().ndtr(np.maximum(_score(b, c, n, d), _score(c, b, n, d))), np.float64)


def smallest_detectable_difference(
    disagreements: ArrayLike, num_images: ArrayLike, level: float = LEVEL, power: float = POWER
) -> Floats:
    """The difference (fraction of images) that the paired test finds with chance ``power``; NaN where none can be.

    ``disagreements`` counts images on which one run only is right; a difference can't be larger than their share.
    Source: n = (z_a sqrt(d) + z_b sqrt(d - x^2))^2 / x^2 of R. J. Connor (1987), Biometrics 43, 207-211, solved for x.
    """
    n = np.asarray(num_images, np.float64)
    d = np.asarray(disagreements, np.float64) / n
    za, zb = normal_quantile(level), float(_special().ndtri(power))
    a, half_b, c = n + zb**2, za * np.sqrt(n * d), (za**2 - zb**2) * d
    x = (half_b + np.sqrt(np.maximum(half_b**2 - a * c, 0))) / a
    return np.where((x <= d) & (d > 0), x, np.nan)


def images_needed(
    disagreements: ArrayLike, difference: ArrayLike, num_images: ArrayLike, margin: float, level: float = LEVEL
) -> Floats:
    """Number of test images for an interval of ± ``margin``, were the runs to go on disagreeing as often (rounded up).

    From the variance of a paired difference, (d - x^2) / n: A. Agresti (2013), Categorical Data Analysis, 11.1.1.
    """
    share = np.asarray(disagreements, np.float64) / np.asarray(num_images, np.float64)
    return np.ceil(normal_quantile(level) ** 2 * (share - np.asarray(difference, np.float64) ** 2) / margin**2)


def fewest_images_for_margin(margin: float, level: float = LEVEL) -> int:
    """With fewer images than this no result shows that a difference is below ``margin``: z^2 (1 - margin) / margin.

    The score interval of two runs that never disagree reaches z^2 / (n + z^2); from there by solving for n.
    """
    return math.ceil(round(normal_quantile(level) ** 2 * (1 - margin) / margin, 6))


# Two recipes over seeds ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedTest:
    """A difference of means over seeds (a minus b), its squared standard error and degrees of freedom."""

    difference: float
    squared_error: float
    df: float


def paired_t(a: Sequence[float], b: Sequence[float]) -> SeedTest:
    """Accuracies of the same seeds in the same order, [S >= 2] each. Source: Student (1908), Biometrika 6, 1-25."""
    x = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return SeedTest(float(x.mean()), float(x.var(ddof=1)) / len(x), len(x) - 1)


def welch_t(a: Sequence[float], b: Sequence[float]) -> SeedTest:
    """Accuracies of other seeds, at least 2 each. Source: B. L. Welch (1947), Biometrika 34, 28-35.

    Degrees of freedom: F. E. Satterthwaite (1946), Biometrics Bull. 2, 110-114.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ea, eb = float(x.var(ddof=1)) / len(x), float(y.var(ddof=1)) / len(y)
    df = satterthwaite([ea, eb], [len(x) - 1, len(y) - 1])
    return SeedTest(float(x.mean() - y.mean()), ea + eb, df)


def satterthwaite(squared_errors: Sequence[float], dfs: Sequence[float]) -> float:
    """Degrees of freedom of a sum of squared errors (Satterthwaite 1946); where all are 0, the fewest of ``dfs``."""
    total = sum(squared_errors)
    if total == 0:
        return min(dfs)
    shares = [error / total for error in squared_errors]
    return 1 / sum(share**2 / df for share, df in zip(shares, dfs, strict=True))


@dataclass(frozen=True)
class RecipeInterval:
    """The wider of two intervals around ``difference``; ``from_images`` when the test images made it wider."""

    difference: float
    low: float
    high: float
    p_value: float
    from_images: bool


def recipe_interval(
    test: SeedTest, image_squared_error: float, num_images: int, level: float = LEVEL
) -> RecipeInterval:
    """What can be said of two recipes whose seeds all share one test set.

    Seeds alone ignore that other test images would move all of them together. So the wider is taken of the seeds' t
    interval and one whose squared error adds ``image_squared_error`` (variance over images of the mean per-image
    difference, / n), with Satterthwaite's degrees of freedom. Its p is the larger of the two: it is at most 1 - level
    just when the wider interval excludes zero. A two-way crossed design: docs/lab/seeds.md has the simulation.
    """
    added = test.squared_error + image_squared_error
    df = satterthwaite([test.squared_error, image_squared_error], [test.df, max(num_images - 1, 1)])
    seeds = t_quantile(test.df, level) * math.sqrt(test.squared_error)
    both = t_quantile(df, level) * math.sqrt(added)
    p = max(_p_of(test.difference, test.squared_error, test.df), _p_of(test.difference, added, df))
    half = max(seeds, both)
    return RecipeInterval(test.difference, test.difference - half, test.difference + half, p, both > seeds)


def _p_of(difference: float, squared_error: float, df: float) -> float:
    if squared_error == 0:
        return 1.0 if difference == 0 else 0.0
    return t_p_value(difference / math.sqrt(squared_error), df)


def tost_seeds(difference: float, squared_error: float, df: float, margin: float) -> float:
    """p that two recipes differ by ``margin`` or more over seeds: small where they are equivalent within it.

    Two one-sided t tests, the larger p: at most alpha just when the t interval of level 1 - 2 alpha lies inside the
    margin. Source: D. J. Schuirmann (1987), J. Pharmacokinet. Biopharm. 15, 657-680. Without any spread 0 or 1.
    Raises ``ValueError`` for a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError("the margin lies above 0")
    short = margin - abs(difference)
    if squared_error == 0:
        return 0.0 if short > 0 else 1.0
    t = -short / math.sqrt(squared_error)
    return float(_special().stdtr(df, t) if math.isfinite(df) else _special().ndtr(t))


def seeds_needed(
    difference: float, seed_variance: float, image_squared_error: float = 0.0, *, df_per_seed: float = 1.0,
    level: float = LEVEL, power: float = POWER,
) -> int | None:  # fmt: skip
    """Seeds of each recipe with which a true ``difference`` is found with chance ``power``; None where 1,000 do not do.

    ``seed_variance`` is that of one seed's difference (for unpaired recipes the sum of both variances), ``df_per_seed``
    1 when paired, (va + vb)^2 / (va^2 + vb^2) otherwise. ``image_squared_error`` does not shrink with more seeds.
    Power of the t test by the noncentral t: J. Cohen (1988), Statistical Power Analysis, 2.
    """

    def found(seeds: int) -> float:
        error = seed_variance / seeds
        df = df_per_seed * (seeds - 1) * ((error + image_squared_error) / error if error > 0 else 1.0) ** 2
        total = math.sqrt(max(error + image_squared_error, 1e-300))
        shift = min(abs(difference) / total, 35.0)  # far beyond any critical value that matters
        special = _special()
        return 1 - float(special.nctdtr(df, shift, special.stdtrit(df, 0.5 + level / 2)))

    if found(_MOST_SEEDS) < power:
        return None
    return 2 + bisect_left(range(2, _MOST_SEEDS), power, key=found)  # the power rises with the seeds


_FALSE_ALARMS = {1: 0.050, 2: 0.083, 3: 0.107, 4: 0.126, 5: 0.142, 6: 0.155, 7: 0.166, 8: 0.176, 9: 0.185, 10: 0.193}


def false_alarm_rate(looks: int) -> float:
    """Chance that one of ``looks`` tests at 0.05 on growing data (equal steps) finds a difference that is not there.

    By the repeated integration of P. Armitage, C. K. McPherson, B. C. Rowe (1969), J. R. Stat. Soc. A 132, 235-244, for
    normal values of known variance; from 10 looks on, that of 10.
    """
    return _FALSE_ALARMS[min(max(looks, 1), 10)]


# One run's confidences -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationError:
    """How far confidence and accuracy are apart, on average over images (fractions), and its interval."""

    value: float
    low: float
    high: float


def calibration_error(confidence: ArrayLike, correct: ArrayLike, level: float = LEVEL) -> CalibrationError:
    """Expected calibration error of confidences [N] (0..1) and right or wrong [N], in bins of equal size.

    Most confidences of a good net are close to 1: bins of equal width would leave most of them empty. About
    1.5 N^(1/3) bins (7, 15, 32 for 100, 1,000, 10,000 images) let both noise and cancelling within a bin fade with N.
    Even where confidence is exactly right a bin's |accuracy - confidence| is above 0 by chance. That excess is taken off,
    estimated as that of a normal gap around the one seen: A. Kumar, P. Liang, T. Ma (2019), Verified Uncertainty
    Calibration, NeurIPS 32, 3792-3803. In a bin with standard error s it leaves up to 0.47 s where there is no error, and takes
    up to 0.094 s too much elsewhere; the upper end allows for the latter.

    Interval: normal, from the variance over images of "right minus confidence" with the sign of its bin, and Wilson's
    term for few errors. Its lower end is 0 where the bins do not contradict exact confidences, p > (1 - level) / 2: chi-square
    of D. W. Hosmer, S. Lemeshow (1980), Commun. Stat. A 9, 1043-1069. (That an error of 0 needs a rule of its own:
    A Confidence Interval for the Expected Calibration Error, arXiv:2408.08998.) Coverage: docs/lab/intervals.md.
    Raises ``ValueError`` without images.
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    n = len(sure)
    if n == 0:
        raise ValueError("a calibration error needs images")
    counts, gap, spread, expected = _bins(sure, right)
    share, plain, error = counts / n, np.abs(gap), np.sqrt(spread / counts)
    value = max(float(share @ (2 * plain - _folded_mean(plain, error))), 0.0)
    z = normal_quantile(level)
    variance = max(float(share @ (spread + plain**2) - (share @ plain) ** 2), 0.0)
    half = z * math.sqrt(variance / n + z**2 / (4 * n**2))
    surprise = float(np.sum(counts * gap**2 / np.maximum(np.maximum(spread, expected), 1e-300)))
    exact = surprise <= float(_special().chdtri(len(counts), (1 - level) / 2))
    low = 0.0 if exact else max(value - half, 0.0)
    return CalibrationError(value, low, min(value + half + _OVERCORRECTION * float(share @ error), 1.0))


def _bins(sure: Floats, right: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Per bin: images, mean and variance of "right minus confidence", its variance were the confidences exact.

    Bins hold equally many images, except that equal confidences share one, so that the order of images does not matter.
    """
    n = len(sure)
    bins = max(1, round(1.5 * n ** (1 / 3)))
    edges = np.unique(np.sort(sure)[np.arange(1, bins) * n // bins])
    which = np.searchsorted(edges, sure, side="right")
    counts = np.bincount(which)
    used = counts > 0
    m = counts[used].astype(np.float64)

    def mean(values: Floats) -> Floats:
        return np.bincount(which, values)[used] / m

    gap = mean(right - sure)
    spread = np.maximum(mean((right - sure) ** 2) - gap**2, 0) * m / np.maximum(m - 1, 1)
    return m, gap, spread, mean(sure * (1 - sure))


def _folded_mean(mean: Floats, deviation: Floats) -> Floats:
    """Mean of |x| for normal x of ``mean`` >= 0: F. C. Leone, L. S. Nelson, R. B. Nottingham (1961), Technometrics 3, 543."""
    z = np.minimum(mean / np.maximum(deviation, 1e-300), 40.0)  # beyond that |x| is x
    excess = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) - z * _special().ndtr(-z)
    return np.asarray(mean + 2 * deviation * excess, np.float64)


# Several runs' answers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kappa:
    """Agreement of two runs beyond chance (at most 1, 0 is chance), its interval; plain agreement is a fraction."""

    value: float
    low: float
    high: float
    agreement: float
    standard_error: float


def kappa(
    predicted_a: ArrayLike, predicted_b: ArrayLike, level: float = LEVEL, *, same: NDArray[np.bool_] | None = None
) -> Kappa:
    """Cohen's kappa of the classes [N] that two runs predict for the same images; 1 where all N are equal.

    ``same`` says where they are equal [N], if the caller knows it already.

    Sources: J. Cohen (1960), Educ. Psychol. Meas. 20, 37-46; standard error: J. L. Fleiss, J. Cohen, B. S. Everitt
    (1969), Psychol. Bull. 72, 323-327. That error is 0 where the runs never disagree, so the interval is Wilson's of the
    agreement, for as many images as give that error (E. L. Korn, B. I. Graubard (1998), Surv. Methodol. 24, 193-201),
    put on kappa's scale. Raises ``ValueError`` without images.
    """
    a, b = np.asarray(predicted_a, np.int64), np.asarray(predicted_b, np.int64)
    n = len(a)
    if n == 0:
        raise ValueError("an agreement needs images")
    size = int(max(a.max(), b.max())) + 1
    share_a, share_b = np.bincount(a, minlength=size) / n, np.bincount(b, minlength=size) / n
    same = np.asarray(a == b) if same is None else same
    agreement, chance = float(same.mean()), float(share_a @ share_b)
    if chance == 1:
        return Kappa(1.0, 1.0, 1.0, 1.0, 0.0)
    value = (agreement - chance) / (1 - chance)
    # Fleiss, Cohen and Everitt's sums over the table of pairs of classes, taken image by image
    weight = same * (1 - chance) - (share_b[a] + share_a[b]) * (1 - agreement)
    mean = agreement * chance - 2 * chance + agreement
    variance = max(float((weight**2).mean()) - mean**2, 0.0) / (n * (1 - chance) ** 4)
    apart = agreement * (1 - agreement)
    effective = apart / (variance * (1 - chance) ** 2) if variance > 0 and apart > 0 else n
    low, high = (float(side) for side in wilson_interval(agreement * effective, effective, level))
    low, high = max(1 - (1 - low) / (1 - chance), -1.0), 1 - (1 - high) / (1 - chance)
    return Kappa(value, low, high, agreement, math.sqrt(variance))


@dataclass(frozen=True, eq=False)
class ClassDifferences:
    """Per class [C]: images, both accuracies, and the interval of a minus b. No images: NaN and (-1, 1)."""

    num_images: NDArray[np.int64]
    accuracy_a: Floats
    accuracy_b: Floats
    low: Floats
    high: Floats


def class_differences(
    labels: ArrayLike, correct_a: ArrayLike, correct_b: ArrayLike, num_classes: int, level: float = LEVEL
) -> ClassDifferences:
    """Accuracies of two runs over the images of each class: ``labels`` [N], right or wrong [N] each.

    Intervals are ``paired_interval``'s, each at ``level``; over C classes 1 - 0.05 / C keeps all of them together.
    Raises ``ValueError`` where a class is not below ``num_classes``.
    """
    classes = np.asarray(labels, np.int64)
    if len(classes) and int(classes.max()) >= num_classes:
        raise ValueError(f"a class is not below {num_classes}")
    a, b = np.asarray(correct_a, np.bool_), np.asarray(correct_b, np.bool_)

    def count(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(classes[chosen], minlength=num_classes).astype(np.int64)

    n = count(np.ones_like(a))
    low, high = paired_interval(count(a & ~b), count(b & ~a), np.maximum(n, 1), level)
    shares = [np.where(n > 0, count(right) / np.maximum(n, 1), np.nan) for right in (a, b)]
    return ClassDifferences(n, shares[0], shares[1], np.where(n > 0, low, -1.0), np.where(n > 0, high, 1.0))


def majority_vote(predicted: ArrayLike) -> NDArray[np.int64]:
    """The class [N] that most of the runs [R >= 1, N] name. A tie goes to the smallest class, whatever the runs' order."""
    rows: NDArray[np.int64] = np.sort(np.asarray(predicted, np.int64), axis=0)
    winner: NDArray[np.int64] = rows[0].copy()
    most = length = np.ones(rows.shape[1], np.int64)
    for before, row in pairwise(rows):
        length = np.where(row == before, length + 1, 1)
        ahead = length > most
        winner, most = np.where(ahead, row, winner), np.where(ahead, length, most)
    return winner


def best_of_n_optimism(correct: ArrayLike) -> float:
    """How much the best of several runs loses on new images: right or wrong [R >= 1, N >= 2] to a fraction.

    The best is chosen on a random half of the images (the first, where several are level) and read on the other half;
    the mean drop over 1,000 halves, always the same ones for N. About 0 or below where the choice did no harm. Half of
    the images choose less surely than all of them: where runs are equally good the drop is 1.41 times the optimism of a
    choice on all N. Source: M. Stone (1974), J. R. Stat. Soc. B 36, 111-147. Raises ``ValueError`` for N < 2.
    """
    right = np.asarray(correct, np.bool_)
    n = right.shape[1]
    if n < 2:
        raise ValueError("two halves need two images")
    halves, size = _halves(n), n // 2
    first = np.stack([np.bitwise_count(halves & row).sum(axis=1, dtype=np.int64) for row in packed(right)])
    best = first.argmax(axis=0)
    chosen = first[best, np.arange(len(halves))]
    return float((chosen / size - (right.sum(axis=1)[best] - chosen) / (n - size)).mean())


@lru_cache(maxsize=4)
def _halves(n: int) -> NDArray[np.uint64]:
    """1,000 random choices of n // 2 of n images, as bits [1000, words].

    A fair coin for each image; then as many of the larger side as are too many change sides, drawn at random.
    """
    random = np.random.default_rng(0)
    rows: list[NDArray[np.uint64]] = []
    for _draw in range(_HALVES):
        chosen = random.integers(0, 2, n, dtype=np.bool_)
        excess = int(np.count_nonzero(chosen)) - n // 2
        larger = np.flatnonzero(chosen == (excess > 0))
        chosen[random.choice(larger, abs(excess), replace=False, shuffle=False)] ^= True
        rows.append(packed(chosen[None])[0])
    return np.stack(rows)


def packed(table: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """The rows of a table [R, N] as 64-bit words, filled up with zeros."""
    octets = np.packbits(table, axis=1)
    return np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8))).view(np.uint64)
