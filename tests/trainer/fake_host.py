"""A trainer host whose runs are played: ``python fake_host.py --home HOME [--idle-seconds S]``.

What a run does stands in the file ``behaviour`` of its folder; what it found around itself it leaves in ``facts.json``.
``devices`` and ``measure`` never respond, so that their ends can be tested; ``measure`` leaves its process id in the file
``measuring`` of HOME.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import wire
from trainer.host import loop as host
from trainer.run_folder import RunFolder

MOST_SECONDS = 60  # so that nothing is left of a test that failed


def execute(
    folder: RunFolder, attempt: int, *, num_threads: int, on_locked: Callable[[], None], device: str | None
) -> int:
    behaviour = (folder.path / "behaviour").read_text()
    if behaviour == "ends before the lock":
        return 3
    lock = folder.acquire_lock(patience_seconds=0.2)
    if lock is None:
        return 4
    facts = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "attempt": attempt,
        "num_threads": num_threads,
        "device": device,
        "open_files": sorted(
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")
        ),
        "home": os.environ.get("RUNOFF_HOME"),
        "token": os.environ.get("RUNOFF_TOKEN"),
        "oom": Path("/proc/self/oom_score_adj").read_text().strip(),
        "sigterm": str(signal.getsignal(signal.SIGTERM)),
    }
    (folder.path / "facts.json").write_text(json.dumps(facts))
    on_locked()
    sys.stdout.write("training\n")
    end = time.monotonic() + MOST_SECONDS
    while behaviour == "trains until stopped" and not folder.stop_requested() and time.monotonic() < end:
        time.sleep(0.01)
    if behaviour == "raises":
        raise RuntimeError("played")
    return 0


def _measure(home: Path, *arguments: object, **keywords: object) -> dict[str, Any]:
    (home / "measuring").write_text(str(os.getpid()))
    time.sleep(MOST_SECONDS)
    return {}


class FakeHost(host.Host):
    """The host itself, except that queries for devices and measurements hang."""

    def _warm_up(self) -> None:
        super()._warm_up()
        from trainer.host import describe, measure

        describe.devices = lambda: time.sleep(600)  # type: ignore[assignment,return-value]
        measure.measure = _measure


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--idle-seconds", type=float, default=60)
    options = parser.parse_args()
    host.prepare_environment(options.home)
    host.QUERY_SECONDS[wire.Devices] = 0.3
    return FakeHost(options.home, execute=execute, idle_seconds=options.idle_seconds).serve()


if __name__ == "__main__":
    sys.exit(main())
