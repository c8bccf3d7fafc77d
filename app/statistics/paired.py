"""Two runs over the same test images: exact test, interval, equivalence, and what the number of images allows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from app.statistics.quantiles import LEVEL, POWER, Floats, normal_quantile, special


def mcnemar_p(only_a: ArrayLike, only_b: ArrayLike) -> Floats:
    """Exact two-sided p that the images on which one run only is right split evenly; 1 where there are none.

    The binomial tail at 1/2, doubled, at most 1. Source: Q. McNemar (1947), Psychometrika 12, 153-157; exact form:
    F. Mosteller (1952), Biometrics 8, 220-226. Below 1e-300 it may be 0.
    """
    b, c = np.asarray(only_a, np.int64), np.asarray(only_b, np.int64)
    tail = special().bdtr(np.minimum(b, c).astype(np.float64), b + c, 0.5)
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
    return np.asarray(special().ndtr(np.maximum(_score(b, c, n, d), _score(c, b, n, d))), np.float64)


def smallest_detectable_difference(
    disagreements: ArrayLike, num_images: ArrayLike, level: float = LEVEL, power: float = POWER
) -> Floats:
    """The difference (fraction of images) that the paired test finds with chance ``power``; NaN where none can be.

    ``disagreements`` counts images on which one run only is right; a difference can't be larger than their share.
    Source: n = (z_a sqrt(d) + z_b sqrt(d - x^2))^2 / x^2 of R. J. Connor (1987), Biometrics 43, 207-211, solved for x.
    """
    n = np.asarray(num_images, np.float64)
    d = np.asarray(disagreements, np.float64) / n
    za, zb = normal_quantile(level), float(special().ndtri(power))
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
