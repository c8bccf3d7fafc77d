"""What the kernels of ``conv_pool_kernels`` and ``norm_pool_kernels`` share: how Numba compiles them, and max-pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

ZERO = np.float32(0)
# Loops may be reordered and a multiplication and an addition fused. NaN and infinity keep their meaning, so that a loss
# that is not finite is noticed.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "nogil": True, "error_model": "numpy"}


def compiled(
    signature: str | list[str] | None = None, *, inline: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for this CPU, and keep the result on disk where the package or the user's cache is writable."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            compiled: Callable[..., Any] = njit(signature, cache=True, forceinline=inline, **_OPTIONS)(function)
        except RuntimeError:  # neither place is writable
            compiled = njit(signature, forceinline=inline, **_OPTIONS)(function)
        return compiled

    return decorate


# Numba does not notice that a cached kernel inlined an older version of this function: delete __pycache__ after a change.
@compiled(inline=True)
def first_largest(z0: Any, z1: Any, z2: Any, z3: Any, v0: Any, v1: Any, v2: Any, v3: Any) -> Any:
    """The largest of four values z, and the v that belongs to it, of equal ones the first."""
    largest = max(max(z0, z1), max(z2, z3))
    value = v2 if z2 == largest else v3
    value = v1 if z1 == largest else value
    value = v0 if z0 == largest else value
    return largest, value
