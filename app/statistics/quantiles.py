"""Quantiles and tails of the normal and of Student's t distribution, and the levels that are used everywhere."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
POWER = 0.8


def special() -> Any:
    """``scipy.special``, imported when first needed."""
    import scipy.special

    return scipy.special


def normal_quantile(level: float = LEVEL) -> float:
    """z of a two-sided interval: 1.96 at 0.95."""
    return float(special().ndtri(0.5 + level / 2))


def t_quantile(df: float, level: float = LEVEL) -> float:
    """t of a two-sided interval with ``df`` degrees of freedom (need not be whole); infinite ``df`` gives z."""
    return float(special().stdtrit(df, 0.5 + level / 2)) if math.isfinite(df) else normal_quantile(level)


def t_p_value(t: float, df: float) -> float:
    """Two-sided p of a t statistic."""
    return min(1.0, 2 * float(special().stdtr(df, -abs(t))))
