"""Attempts of runs as the trainer host starts them: forked from a process that has PyTorch imported, one at a time.

``python -m tests.faults.attempts`` is that process. With ``strace`` an attempt's system calls are recorded, and one of
them fails or ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.faults.forking import ForkingProcess
from trainer.event_log import read_log
from trainer.run_folder import RunFolder

SPARE_SECONDS = 120.0  # an attempt of these tests takes about one; after this it ends itself


class Attempts(ForkingProcess):
    """The process that forks attempts for one home. ``run`` waits for the end of an attempt."""

    def __init__(self, home: Path) -> None:
        super().__init__("tests.faults.attempts", {"RUNOFF_HOME": str(home), "OPENBLAS_NUM_THREADS": "1"})

    def run(
        self, folder: RunFolder, attempt: int, *, strace: Sequence[str] = (), kill_after_epochs: int | None = None
    ) -> int:
        """Run an attempt, watched by strace if it has arguments. Returns its exit status, or minus the signal."""
        request = {"folder": str(folder.path), "attempt": attempt, "strace": list(strace), "epochs": kill_after_epochs}
        return int(self.ask(request)["exit"])


# The process ---------------------------------------------------------------------------------------------------------


def main() -> None:
    import torch._dynamo  # noqa: F401  (as in the host: every attempt would import it)

    from trainer import runtime

    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps({"exit": _attempt(request, runtime.execute)}) + "\n")
        sys.stdout.flush()


def _attempt(request: dict[str, Any], execute: Any) -> int:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)  # until strace is attached
        _in_child(request, execute)
    os.close(reading)
    tracer = _attach(pid, request["strace"]) if request["strace"] else None
    os.close(writing)
    if request["epochs"]:
        folder = RunFolder(Path(request["folder"]))
        while len(read_log(folder.events_path).epochs) < request["epochs"]:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if tracer is not None:
        tracer.wait()
        assert tracer.stderr is not None
        tracer.stderr.close()
    return status


def _attach(pid: int, arguments: list[str]) -> subprocess.Popen[str]:
    tracer = subprocess.Popen(["strace", *arguments, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    first = tracer.stderr.readline()
    if "attached" not in first:
        os.kill(pid, signal.SIGKILL)
        raise RuntimeError(f"strace: {first}")
    return tracer


def _in_child(request: dict[str, Any], execute: Any) -> NoReturn:
    from trainer import wire
    from trainer.host import forking

    code = 1
    try:
        signal.alarm(int(SPARE_SECONDS))
        _reading, pipe = os.pipe()
        start = wire.Start(folder=request["folder"], attempt=request["attempt"], num_threads=1)
        code = forking.perform(start, execute, pipe)
    except BaseException as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{error!r}\n")
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
