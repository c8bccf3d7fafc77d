"""Whether one run is right as often as it is confident."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from app.statistics.quantiles import LEVEL, Floats, normal_quantile, special

_OVERCORRECTION = 0.0936  # largest, in standard errors of a bin: see calibration_error


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
    of D. W. Hosmer, S. Lemeshow (1980), Commun. Stat. A 9, 1043-1069. (That an error of 0 needs a separate rule:
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
    exact = surprise <= float(special().chdtri(len(counts), (1 - level) / 2))
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
    excess = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) - z * special().ndtr(-z)
    return np.asarray(mean + 2 * deviation * excess, np.float64)
