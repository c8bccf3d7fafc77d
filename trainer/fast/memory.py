"""Whether the C library keeps the memory that a training step has freed. GNU's C library on Linux only."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

# Parameters of mallopt(3): M_MMAP_MAX, the number of pieces; M_TRIM_THRESHOLD and M_TOP_PAD, in bytes.
_SETTINGS = {-4: 0, -1: 2**31 - 1, -2: 64 << 20}


def keep_freed_memory() -> None:
    """Keep freed memory for the next step.

    By default the C library gives large pieces back to the system at once, which fills their pages with zeros again in
    every step: 30,000 page faults and a seventh of the time of a step of ``vgg``.
    """
    mallopt = _from_c_library("mallopt")
    if mallopt is not None:
        for parameter, value in _SETTINGS.items():
            mallopt(parameter, value)


def release_freed_memory() -> None:
    """Give kept memory back to the system, for when the next pieces have other sizes."""
    malloc_trim = _from_c_library("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def _from_c_library(name: str) -> Any:
    """A function of the C library, or None where it has no such function."""
    return getattr(ctypes.CDLL(None), name, None) if platform.system() == "Linux" else None
