"""Two recipes over seeds: tests, the interval that counts the test images too, power, repeated looks."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.statistics.quantiles import LEVEL, POWER, special, t_p_value, t_quantile

_MOST_SEEDS = 1000


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
    return float(special().stdtr(df, t) if math.isfinite(df) else special().ndtr(t))


def seeds_needed(
    difference: float,
    seed_variance: float,
    image_squared_error: float = 0.0,
    *,
    df_per_seed: float = 1.0,
    level: float = LEVEL,
    power: float = POWER,
) -> int | None:
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
        return 1 - float(special().nctdtr(df, shift, special().stdtrit(df, 0.5 + level / 2)))

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
