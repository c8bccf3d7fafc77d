"""Real processes are killed: runs, the trainer host, the server. Nothing may be lost or doubled."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from app.cli.client import Client, ClientError
from app.runs.executors.local import LocalExecutor
from trainer.run_folder import RunFolder, iter_valid_events

pytestmark = pytest.mark.faults
BASE = {"dataset": "digits", "model": "fc", "batch_size": 8}
LONG = {**BASE, "epochs": 400}  # far longer than any test; cancelled at its end


def wait_for(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
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

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.start()

    def start(self) -> None:
        environment = {**os.environ, "RUNOFF_HOME": str(self.home), "RUNOFF_PORT": str(self.port), "RUNOFF_SLOTS": "2"}
        environment["RUNOFF_MEASURE"] = "false"
        environment.pop("RUNOFF_DATASETS", None)
        self.process = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment)
        wait_for(self.client.is_up)

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
        """The process that holds the run's lock, found as the system knows it."""
        lock = self.folder(run_id).lock_path.stat()

        def find() -> int | None:
            for line in Path("/proc/locks").read_text().splitlines():
                words = line.split()
                if words[1] == "POSIX" and words[5].endswith(f":{lock.st_ino}"):
                    return int(words[4])
            return None

        found: int = wait_for(find)
        return found

    def host_process(self) -> int:
        """The trainer host of this home: the parent of its runs."""
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if "trainer.host" in line and str(self.home) in line and _parent(process) not in _hosts(self.home):
                return int(process.pid)
        raise AssertionError("there is no host")


def _hosts(home: Path) -> set[int]:
    found = psutil.process_iter(["cmdline"])
    return {p.pid for p in found if "trainer.host" in (p.info["cmdline"] or []) and str(home) in p.info["cmdline"]}


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("faults") / "home")
    yield server
    with contextlib.suppress(ClientError):
        for status in ("queued", "running"):
            for run in server.client.runs(status=status)["runs"]:
                server.client.call("POST", f"/runs/{run['id']}/cancel")
        for run in server.client.runs(limit=1000)["runs"]:
            server.wait_status(run["id"], "finished", "failed", "cancelled")
    server.client.close()
    server.process.terminate()
    server.process.wait()
    LocalExecutor(server.home).end_host()


def answers(folder: RunFolder, epoch: int) -> dict[str, Any]:
    return {name: value.tolist() for name, value in load_file(folder.predictions_path(epoch)).items()}


def weights(folder: RunFolder, epoch: int) -> dict[str, Any]:
    return load_file(folder.checkpoint_path(epoch))


def assert_same_result(server: Server, one: str, other: str, epochs: int) -> None:
    assert server.epochs(one) == server.epochs(other) == [*range(1, epochs + 1)]
    first, second = weights(server.folder(one), epochs), weights(server.folder(other), epochs)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert answers(server.folder(one), epochs) == answers(server.folder(other), epochs)


def test_a_killed_run_is_resumed_to_the_same_numbers(server: Server) -> None:
    config = {**BASE, "model": "cnn", "epochs": 12, "optimizer": "adam", "learning_rate": 0.001}
    undisturbed, killed = server.begin(**config), server.begin(**config)
    server.wait_epochs(killed, 2)
    os.kill(server.run_process(killed), signal.SIGKILL)
    ended = server.wait_status(killed, "finished", "failed")
    server.wait_status(undisturbed, "finished")
    assert (ended["status"], ended["attempt"]) == ("finished", 2)
    assert (server.folder(killed).read_exit(1) or {})["signal"] == 9
    assert_same_result(server, killed, undisturbed, 12)


def test_a_killed_host_ends_no_run(server: Server) -> None:
    run = server.begin(**{**LONG, "seed": 1})
    server.wait_epochs(run, 1)
    host = server.host_process()
    os.kill(host, signal.SIGKILL)
    before = server.client.run(run)["epochs_done"]
    server.wait_epochs(run, before + 2)
    assert server.client.run(run)["attempt"] == 1
    following = server.begin(**{**BASE, "seed": 2})
    assert server.wait_status(following, "finished", "failed")["status"] == "finished"
    assert server.host_process() != host
    server.client.call("POST", f"/runs/{run}/cancel")
    server.wait_status(run, "cancelled")


def test_a_peer_that_goes_away_ends_no_server(server: Server) -> None:
    """Whoever writes to a connection that its peer has closed gets this signal, which ends a process by default."""
    os.kill(server.process.pid, signal.SIGPIPE)
    for _request in range(3):
        server.client.call("GET", "/runs")
    assert server.process.poll() is None


def test_a_killed_server_loses_and_doubles_nothing(server: Server) -> None:
    run = server.begin(**{**LONG, "seed": 3})
    server.wait_epochs(run, 1)
    server.kill()
    written = _num_epoch_lines(server.folder(run))
    wait_for(lambda: _num_epoch_lines(server.folder(run)) >= written + 3)
    server.start()
    server.wait_epochs(run, written + 4)
    server.client.call("POST", f"/runs/{run}/cancel")
    ended = server.wait_status(run, "cancelled")
    assert ended["attempt"] == 1
    lines = [
        event["epoch"] for event, _end in iter_valid_events(server.folder(run).events_path) if event["type"] == "epoch"
    ]
    assert server.epochs(run) == lines == [*range(1, len(lines) + 1)]


def _num_epoch_lines(folder: RunFolder) -> int:
    return sum(event["type"] == "epoch" for event, _end in iter_valid_events(folder.events_path))


def test_a_cancelled_run_resumes_to_the_same_numbers(server: Server) -> None:
    config = {**BASE, "epochs": 15, "schedule": "cosine", "seed": 4}
    undisturbed, cancelled = server.begin(**config), server.begin(**config)
    server.wait_epochs(cancelled, 1)
    server.client.call("POST", f"/runs/{cancelled}/cancel")
    stopped = server.wait_status(cancelled, "cancelled", "finished")
    assert stopped["status"] == "cancelled"
    assert 1 <= stopped["epochs_done"] < 15
    server.client.call("POST", f"/runs/{cancelled}/resume")
    assert server.wait_status(cancelled, "finished", "failed")["attempt"] == 2
    server.wait_status(undisturbed, "finished")
    assert_same_result(server, cancelled, undisturbed, 15)


def test_a_diverging_run_fails_by_name_and_the_server_goes_on(server: Server) -> None:
    run = server.wait_status(server.begin(**{**BASE, "learning_rate": 1e6}), "failed", "finished")
    assert run["status"] == "failed"
    assert run["error"]["error"] == "NonFiniteLoss"
    assert "learning rate" in run["error"]["advice"].lower()
    assert server.wait_status(server.begin(**BASE), "finished", "failed")["status"] == "finished"


def test_a_rebuilt_index_equals_the_live_one(server: Server) -> None:
    def everything() -> dict[str, Any]:
        runs = server.client.runs(limit=1000, sort="created_at")["runs"]
        return {run["id"]: (run, server.client.call("GET", f"/runs/{run['id']}/epochs")) for run in runs}

    wait_for(lambda: not [run for run, _epochs in everything().values() if run["status"] in ("queued", "running")])
    before = everything()
    assert server.client.call("POST", "/reindex") == {"runs": len(before)}
    assert everything() == before
