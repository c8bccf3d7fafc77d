"""A stopped process is shown and can be ended: a run by a person, a trainer host by the server."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.test_faults import BASE, LONG, Server, server, wait_for

__all__ = ["server"]
pytestmark = pytest.mark.faults


def make_silent(server: Server, run: str) -> None:
    """Let the last sign of life be two minutes old."""
    path = server.folder(run).heartbeat_path
    os.utime(path, (time.time(), time.time() - 120))


def test_a_stopped_run_is_shown_and_ended_by_force(server: Server) -> None:
    run = server.begin(**{**LONG, "seed": 11})
    server.wait_epochs(run, 1)
    os.kill(server.run_process(run), signal.SIGSTOP)
    make_silent(server, run)
    wait_for(lambda: server.client.run(run)["hanging_since"])
    server.client.call("POST", f"/runs/{run}/cancel")  # in vain: nobody looks
    assert server.status(run) == "running"
    server.client.call("POST", f"/runs/{run}/stop")
    ended = server.wait_status(run, "cancelled", "failed")
    assert (ended["status"], ended["hanging_since"]) == ("cancelled", None)
    following = server.begin(**{**BASE, "seed": 12})
    assert server.wait_status(following, "finished", "failed")["status"] == "finished"


def test_a_stopped_host_is_replaced(server: Server) -> None:
    first = server.begin(**{**BASE, "seed": 13})
    server.wait_status(first, "finished")
    host = server.host_process()
    os.kill(host, signal.SIGSTOP)
    run = server.begin(**{**BASE, "seed": 14})
    assert server.wait_status(run, "finished", "failed")["status"] == "finished"
    assert server.client.run(run)["attempt"] == 1
    assert server.host_process() != host
