"""How many runs train at the same time, and on which device a run can start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from app.store.tables import Run
from trainer.cores import num_cores, threads_for


def free_device(run: Run, running: Sequence[Run], accelerators: Sequence[str], slots: int | None) -> str | None:
    """The device on which ``run`` can start now, or None while it must wait.

    ``accelerators`` are the names of the GPUs, such as ``cuda:0``. Each takes one run. The CPU has one slot per core, and a
    run takes as many slots as its net uses threads; a run may always start on an idle CPU. ``slots``, if not None, replaces
    both rules: at most that many runs train at the same time.
    """
    load = Counter(_device_of(other) for other in running)
    candidates = _devices_for(run.config["device"], accelerators)
    if slots is not None:
        return min(candidates, key=lambda name: load[name]) if len(running) < slots else None
    for name in candidates:
        if name != "cpu" and not load[name]:
            return name
        if name == "cpu":
            used = sum(threads_for(other.model) for other in running if _device_of(other) == "cpu")
            if not used or used + threads_for(run.model) <= num_cores():
                return name
    return None


def _device_of(run: Run) -> str:
    return run.device or "cpu"


def _devices_for(wish: str, accelerators: Sequence[str]) -> list[str]:
    """The devices that a config's ``device`` allows, best first.

    A device that this machine does not have is included, so that the run starts and fails with a clear error.
    """
    if wish == "auto":
        return list(accelerators) or ["cpu"]
    if wish == "cuda":
        return [name for name in accelerators if name.startswith("cuda")] or ["cuda:0"]
    return [wish]
