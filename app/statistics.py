"""Statistics as pure functions over arrays: intervals, exact tests, power. Each names its source.

What a result means, in words, is ``app.comparison``'s. ``scipy.special`` is imported when first needed (``scipy.stats``
costs a second and 60 MB). Methods that the coverage simulation did not choose live in benchmarks/interval_coverage.py.
Unless said otherwise arguments may be numbers or arrays that broadcast, and results are float64.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
POWER = 0.8
_MOST_SEEDS = 1000


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
    just when the wider interval excludes zero. A two-way crossed design: docs/statistics.md has the simulation.
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


_FALSE_ALARMS = {1: 0.050, 2: 0.083, 3: 0.107, 4: 0.126, 5: 0.142, 6: 0.155, 7: 0.167, 8: 0.177, 9: 0.185, 10: 0.193}


def false_alarm_rate(looks: int) -> float:
    """Chance that one of ``looks`` tests at 0.05 on growing data (equal steps) finds a difference that is not there.

    Table 2 of P. Armitage, C. K. McPherson, B. C. Rowe (1969), J. R. Stat. Soc. A 132, 235-244; from 10 looks on, that of 10.
    """
    return _FALSE_ALARMS[min(max(looks, 1), 10)]
