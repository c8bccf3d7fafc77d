"""A real server on its own home, and the processes that it starts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from app.cli.client import Client
from app.runs.executors.local import LocalExecutor
from trainer.run_folder import RunFolder

BASE = {"dataset": "digits", "model": "fc", "batch_size": 8}


def wait_for(condition: Callable[[], Any], seconds: float = 300.0) -> Any:
    """What the condition returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


class Server:
    """A server process on a home; ``start`` after ``kill`` is a restart."""

    def __init__(self, home: Path, *, log: Path | None = None, **settings: str) -> None:
        self.home, self.log = home, log
        self.settings = {"RUNOFF_SLOTS": "2", "RUNOFF_MEASURE": "false"}
        self.settings |= {"RUNOFF_RESERVE_MB": "0"} | settings  # the disk of the power cuts is small
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.start()

    def start(self) -> None:
        self.process = self.open()
        wait_for(self.client.is_up)

    def open(self) -> subprocess.Popen[bytes]:
        """A server process, whether or not it can serve."""
        environment = {**os.environ, "RUNOFF_HOME": str(self.home), "RUNOFF_PORT": str(self.port), **self.settings}
        environment.pop("RUNOFF_DATASETS", None)
        with contextlib.ExitStack() as stack:
            log = None if self.log is None else stack.enter_context(self.log.open("ab"))
            return subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment, stdout=log, stderr=log)

    def stop(self) -> None:
        """End the server in order."""
        self.process.terminate()
        self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.home / "runs" / run_id)

    def begin(self, **fields: Any) -> str:
        return str(self.client.start_run(**fields)["id"])

    def status(self, run_id: str) -> str:
        return str(self.client.run(run_id)["status"])

    def wait_status(self, run_id: str, *wanted: str) -> dict[str, Any]:
        wait_for(lambda: self.status(run_id) in wanted)
        return self.client.run(run_id)

    def wait_epochs(self, run_id: str, count: int) -> None:
        wait_for(lambda: self.client.run(run_id)["epochs_done"] >= count)

    def epochs(self, run_id: str) -> list[int]:
        return [epoch["epoch"] for epoch in self.client.call("GET", f"/runs/{run_id}/epochs")["epochs"]]

    def run_process(self, run_id: str) -> int:
        """The process that holds the run's lock."""
        found: int = wait_for(lambda: lock_holder(self.folder(run_id)))
        return found

    def host_process(self) -> int:
        """The trainer host of this home: the parent of its runs."""
        processes = trainer_processes(self.home)
        return next(pid for pid, parent in processes.items() if parent not in processes)

    def close(self) -> None:
        """Stop the server and the host, after its runs have ended."""
        self.client.close()
        self.stop()
        LocalExecutor(self.home).end_host()


def trainer_processes(home: Path) -> dict[int, int]:
    """The trainer host of a home and what it forked, each with its parent."""
    found: dict[int, int] = {}
    for process in psutil.process_iter(["cmdline", "ppid"]):
        line = process.info["cmdline"] or []
        if "trainer.host" in line and str(home) in line:
            found[process.pid] = process.info["ppid"]
    return found


def lock_holder(folder: RunFolder) -> int | None:
    """The process that holds a run's lock, from the kernel's table."""
    try:
        lock = folder.lock_path.stat()
    except FileNotFoundError:
        return None
    file = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "POSIX" and words[5] == file:
            return int(words[4])
    return None
