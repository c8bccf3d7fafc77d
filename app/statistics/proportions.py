"""Intervals of one accuracy: over its test images, and over the accuracies of several seeds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from app.statistics.quantiles import LEVEL, Floats, normal_quantile, t_quantile


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
