"""How many CPU cores there are to use. Imports no torch, so that the scheduler and the trainer count alike."""

from __future__ import annotations

import math
import os
from pathlib import Path


def num_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores that this process may use: by its affinity, and by a container's quota (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text().split()
        return max(1, min(cores, math.ceil(int(limit) / int(period))))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return cores
