"""A stopped process is shown and can be ended: a run by a person, a trainer host by the server."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest

from tests.faults.conftest import Count
from tests.faults.servers import BASE, Server, wait_for
from tests.faults.test_faults import LONG

pytestmark = pytest.mark.faults


def test_a_stopped_run_is_shown_and_ended_by_force(server: Server, full: bool, count: Count) -> None:
    times = 20 if full else 1
    for seed in range(times):
        run = server.begin(**{**LONG, "seed": 1000 + seed})
        server.wait_epochs(run, 1)
        os.kill(server.run_process(run), signal.SIGSTOP)
        make_silent(server, run)
        wait_for(partial(is_shown_as_hanging, server, run))
        server.client.call("POST", f"/runs/{run}/cancel")  # in vain: the process does not look
        assert server.status(run) == "running"
        server.client.call("POST", f"/runs/{run}/stop")
        ended = server.wait_status(run, "cancelled", "failed")
        assert (ended["status"], ended["hanging_since"]) == ("cancelled", None)
    following = server.begin(**{**BASE, "seed": 999})
    assert server.wait_status(following, "finished", "failed")["status"] == "finished"
    count("SIGSTOP of a run", times, "shown as hanging, ended by force, the queue goes on")


def is_shown_as_hanging(server: Server, run: str) -> bool:
    return server.client.run(run)["hanging_since"] is not None


def make_silent(server: Server, run: str) -> None:
    """Let the last sign of life be two minutes old."""
    os.utime(server.folder(run).heartbeat_path, (time.time() - 120,) * 2)


@pytest.mark.full
def test_a_stopped_host_is_replaced(server: Server, full: bool, count: Count) -> None:
    times = 20 if full else 1
    server.wait_status(server.begin(**{**BASE, "seed": 1100}), "finished")
    for seed in range(times):
        host = server.host_process()
        os.kill(host, signal.SIGSTOP)
        run = server.begin(**{**BASE, "seed": 1101 + seed})
        ended = server.wait_status(run, "finished", "failed")
        assert (ended["status"], ended["attempt"]) == ("finished", 1)
        assert server.host_process() != host
    count("SIGSTOP of the trainer host", times, "replaced; the queued run finished in its first attempt")
