"""The sign of life of a training loop: the time of the file ``heartbeat``. Imports neither torch nor numpy.

The loop itself gives it, at every batch. A thread would also give it while the loop hangs.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_EVERY_SECONDS = 1.0
_GROWTH = 1.1  # a longer gap is written when it is so many times the one that was
_LEAST_SECONDS, _TIMES_LONGEST_GAP = 60.0, 20.0


class Heartbeat:
    """Touches a file, which holds the longest time between two beats so far, in seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beat_at = time.monotonic()
        self._touched_at = 0.0
        self._longest = self._written = 0.0
        self._write()

    def beat(self) -> None:
        """To be called at every batch. Writes at most once a second; a disk that refuses is ignored."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._beat_at)
        self._beat_at = now
        if now - self._touched_at < _EVERY_SECONDS:
            return
        self._touched_at = now
        if self._longest > self._written * _GROWTH:
            self._write()
        else:
            try:
                os.utime(self._path)
            except FileNotFoundError:
                self._write()
            except OSError:
                pass

    def _write(self) -> None:
        self._written = self._longest
        with suppress(OSError):
            self._path.write_text(f"{self._longest:.3f}\n", encoding="ascii")


def silent_since(path: Path) -> float | None:
    """When a loop that hangs gave its last sign of life, as seconds since 1970; None for one that does not seem to hang.

    It seems to if it has been silent for a minute and for 20 times its longest gap so far. Loops of versions before
    heartbeats have no file and never do.
    """
    try:
        last = path.stat().st_mtime
        longest = float(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        longest = 0.0
    return last if time.time() - last > max(_LEAST_SECONDS, _TIMES_LONGEST_GAP * longest) else None
