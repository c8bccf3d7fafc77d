"""A server works for an hour. Its memory, open files and log do not grow."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.faults.conftest import Count
from tests.faults.servers import BASE, Server

pytestmark = [pytest.mark.faults, pytest.mark.full]

MOST_GROWTH = 20 * 2**20  # bytes of memory
MOST_FILES = 16  # more at the end than at the beginning: connections of clients come and go
PAGES = ("/runs", "/runs/{run}", "/compare?run={run}&run={other}", "/runs/new", "/datasets", "/check", "/api")
CALLS = ("/runs?limit=100", "/runs/{run}", "/runs/{run}/epochs", "/runs/{run}/steps", "/compare?run={run}&run={other}")


class Use:
    """Clients that read pages and call the API, as people and scripts do, and the responses that were wrong."""

    def __init__(self, server: Server, clients: int) -> None:
        self.server = server
        self.wrong: list[str] = []
        self.num_requests = 0
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Use:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        base = self.server.client.url
        with httpx.Client(timeout=60, trust_env=False) as http:
            turn = number
            while not self._end.wait(1.0):
                turn += 1
                runs = http.get(f"{base}/api/v1/runs", params={"status": "finished", "limit": 20}).json()["runs"]
                ids = {"run": runs[turn % len(runs)]["id"], "other": runs[(turn + 1) % len(runs)]["id"]} if runs else {}
                path = (PAGES if number % 2 else [f"/api/v1{call}" for call in CALLS])[turn % 5]
                if "{" in path and len(set(ids.values())) < 2:
                    continue
                headers = {"Accept": "text/html"} if number % 2 else {}
                answer = http.get(base + path.format(**ids), headers=headers)
                self.num_requests += 2
                if answer.status_code != 200:
                    self.wrong.append(f"{path}: {answer.status_code}")


def test_memory_files_and_log_do_not_grow(
    tmp_path: Path, full: bool, count: Count, record_property: Callable[[str, Any], None]
) -> None:
    minutes, num_runs, clients = (60.0, 300, 4) if full else (0.25, 4, 2)
    log = tmp_path / "server.log"
    server = Server(tmp_path / "home", log=log)
    process = psutil.Process(server.process.pid)
    memory: list[int] = []
    files: list[int] = []
    try:
        with Use(server, clients) as use:
            end = time.monotonic() + minutes * 60
            runs: list[str] = []
            while time.monotonic() < end:
                due = num_runs * (1 - (end - time.monotonic()) / (minutes * 60))
                while len(runs) < min(due, num_runs):
                    runs.append(server.begin(**{**BASE, "batch_size": 64, "epochs": 3, "seed": len(runs)}))
                memory.append(process.memory_info().rss)
                files.append(process.num_fds())
                time.sleep(min(5.0, max(0.0, end - time.monotonic())))
        assert [server.wait_status(run, "finished", "failed")["status"] for run in runs] == ["finished"] * len(runs)
    finally:
        server.close()
    part = max(1, len(memory) // 12)  # five minutes of an hour; the first are a warm-up
    grown = statistics.median(memory[-part:]) - statistics.median(memory[part : 2 * part] or memory)
    more_files = max(files[-part:]) - min(files[part : 2 * part] or files)
    record_property("memory", memory[::part])
    what = f"{minutes:g} minutes, {len(runs)} runs, {clients} clients, {use.num_requests:,} requests"
    text = log.read_text()
    count(
        what, 1, f"{grown / 2**20:+.1f} MB of {memory[-1] / 2**20:.0f}, {more_files:+d} files, log {len(text):,} bytes"
    )
    assert use.wrong == []
    assert "Traceback" not in text
    assert more_files <= MOST_FILES
    assert not full or grown <= MOST_GROWTH
