"""How much memory the machine has, and how often the kernel has killed a process because memory ran out."""

from __future__ import annotations

import re
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OOM_COUNTERS = [  # the first that can be read counts: the container's (cgroup 2, then 1), then the machine's
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
    Path("/proc/vmstat"),
]


def read_memory() -> dict[str, int]:
    """``total_bytes`` and ``available_bytes`` of the machine and the counter ``oom_kills``, as far as they can be read."""
    found = {
        "total_bytes": _number(_MEMINFO, "MemTotal:", 1024),
        "available_bytes": _number(_MEMINFO, "MemAvailable:", 1024),
        "oom_kills": next((n for path in _OOM_COUNTERS if (n := _number(path, "oom_kill")) is not None), None),
    }
    return {name: value for name, value in found.items() if value is not None}


def _number(path: Path, name: str, unit: int = 1) -> int | None:
    try:
        match = re.search(rf"^{name}\s+(\d+)", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * unit if match else None
