"""The trainer host and the server are killed, and runs end in other ways than finishing. Nothing may be lost or doubled."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.faults.results import reported_epochs, results
from tests.faults.servers import BASE, Server, wait_for

pytestmark = pytest.mark.faults
LONG = {**BASE, "epochs": 400}  # far longer than any test; cancelled at its end


def assert_same_result(server: Server, one: str, other: str, epochs: int) -> None:
    assert server.epochs(one) == server.epochs(other) == [*range(1, epochs + 1)]
    assert results(server.folder(one)) == results(server.folder(other))


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
    folder = server.folder(run)
    written = len(reported_epochs(folder))
    wait_for(lambda: len(reported_epochs(folder)) >= written + 3)
    server.start()
    server.wait_epochs(run, written + 4)
    server.client.call("POST", f"/runs/{run}/cancel")
    ended = server.wait_status(run, "cancelled")
    assert ended["attempt"] == 1
    lines = reported_epochs(folder)
    assert server.epochs(run) == lines == [*range(1, len(lines) + 1)]


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
