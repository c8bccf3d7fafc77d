"""CPU cores: how many there are to use, and how many threads suit a net. Imports no torch, so that the scheduler can ask."""

from __future__ import annotations

import math
import os
from pathlib import Path

from trainer.config import MODELS


def num_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores that this process may use: by its affinity, and by a container's quota (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
        return max(1, min(cores, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return cores


def threads_for(model: str) -> int:
    """CPU threads that suit a model, by its name; at most as many as there are cores."""
    return min(MODELS[model].threads or num_cores(), num_cores())
