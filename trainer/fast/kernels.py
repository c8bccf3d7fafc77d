"""Shared by ``conv_pool_kernels`` and ``norm_pool_kernels``: how Numba compiles them, and the maximum of a 2 x 2 window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

ZERO = np.float32(0)
# The compiler may reorder sums and fuse a multiplication with an addition. NaN and infinity are handled as usual, so that a
# loss that is not finite is noticed.
_OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "nogil": True, "error_model": "numpy"}


def compiled(
    signature: str | list[str] | None = None, *, inline: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that compiles a function for this CPU.

    The result is cached on disk if the package's folder or the user's cache folder is writable. ``signature`` has Numba's
    types of the arguments; without it, the function is compiled at its first call. ``inline`` forces inlining.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            compiled: Callable[..., Any] = njit(signature, cache=True, forceinline=inline, **_OPTIONS)(function)
        except RuntimeError:  # neither folder is writable
            compiled = njit(signature, forceinline=inline, **_OPTIONS)(function)
        return compiled

    return decorate


# Delete __pycache__ after a change: Numba does not notice that a cached kernel has inlined an older version of this.
@compiled(inline=True)
def first_largest(z0: Any, z1: Any, z2: Any, z3: Any, v0: Any, v1: Any, v2: Any, v3: Any) -> Any:
    """The largest of four values z0 to z3, and the one of v0 to v3 that belongs to it. Of equal values the first counts."""
    largest = max(max(z0, z1), max(z2, z3))
    value = v2 if z2 == largest else v3
    value = v1 if z1 == largest else value
    value = v0 if z0 == largest else value
    return largest, value
