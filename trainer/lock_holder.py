"""Which process holds a POSIX lock, and ending it by force. Imports neither torch nor numpy."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

_IS_LINUX = sys.platform == "linux"
_FLOCK = "hhqqi4x" if _IS_LINUX else "qqihh"  # struct flock: Linux on 64 bits, else macOS and the BSDs
_PAUSE_SECONDS = 0.02


def holder(path: Path) -> int | None:
    """The id of the process that holds the lock on ``path``; None if it is free.

    0 if that process can't be seen from here, as from within another container. Never ask for a file that this process
    has locked itself: closing it would free the lock.
    """
    fields = (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    request = struct.pack(_FLOCK, *(fields if _IS_LINUX else (0, 0, 0, *fields[:2])))
    try:
        with path.open("rb") as file:
            answer = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, request))
    except FileNotFoundError:
        return None
    kind, pid = (answer[0], answer[4]) if _IS_LINUX else (answer[3], answer[2])
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def end_holder(path: Path, patience_seconds: float = 5.0) -> bool:
    """Kill the process that holds the lock on ``path``; True when the lock is free.

    False if the process can't be seen or does not end, as one that waits for a broken disk. Between finding and killing it
    another process can't be taken for it: the system's handle for the process stays the same.
    """
    deadline = time.monotonic() + patience_seconds
    while (pid := holder(path)) is not None and time.monotonic() < deadline:
        if pid:
            with suppress(ProcessLookupError, PermissionError):
                _kill(pid, path)
        time.sleep(_PAUSE_SECONDS)
    return pid is None


def _kill(pid: int, path: Path) -> None:
    if not _IS_LINUX:
        os.kill(pid, signal.SIGKILL)
        return
    handle = os.pidfd_open(pid)
    try:
        if holder(path) == pid:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
