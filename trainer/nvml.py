"""The memory of NVIDIA GPUs as the driver reports it. Needs no CUDA context, and takes no memory on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pynvml


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU."""

    total: int
    free: int


@contextmanager
def _driver() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def memory(uuid: str) -> Memory | None:
    """The memory of one GPU; None where the driver does not say.

    The GPU is named by its UUID, because the driver's order is not CUDA's: CUDA leaves out what CUDA_VISIBLE_DEVICES
    hides and may begin with the fastest. A part of a GPU (MIG) has a UUID of its own.
    """
    with suppress(pynvml.NVMLError), _driver():
        handle = _handle(uuid)
        if handle is not None:
            info = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return Memory(int(info.total), int(info.free))
    return None


def _handle(uuid: str) -> Any:
    for kind in ("GPU", "MIG"):
        with suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(f"{kind}-{uuid}".encode())
    return None
