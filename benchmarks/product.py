"""The whole product for benchmarks: a server on a home of its own, and what an open run page asks of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from app.cli.client import Client
from app.runs.executors.local import LocalExecutor
from benchmarks.sides import peak_mb
from trainer.events import TERMINAL

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    client: Client
    pid: int
    start_seconds: float  # from the start of its process to its first answer


def wait(condition: Callable[[], T], seconds: float = 600.0, pause_seconds: float = 0.01) -> T:
    """What the condition returns as soon as it is true. Raises ``TimeoutError``."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(pause_seconds)
    return found


@contextmanager
def serving(home: Path) -> Iterator[Server]:
    """A server on ``home`` that measures nothing of its own; it and its trainer host are ended behind the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}")
    settings = {"RUNOFF_HOME": str(home), "RUNOFF_PORT": str(port), "RUNOFF_MEASURE": "false"}
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve"], env={**os.environ, **settings}, stdout=subprocess.DEVNULL
    )
    try:
        wait(lambda: client.is_up() or process.poll() is not None, 60)
        if process.poll() is not None:
            raise RuntimeError("The server ended at once; what it said stands above.")
        yield Server(client, process.pid, time.monotonic() - begin)
    finally:
        client.close()
        process.terminate()
        process.wait()
        LocalExecutor(home).end_host()


def finished(client: Client, run_id: str) -> dict[str, Any]:
    """The run once it has ended. Raises ``RuntimeError`` where it did not finish."""

    def ended() -> dict[str, Any] | None:
        run = client.run(run_id)
        return run if run["status"] in TERMINAL else None

    run = wait(ended, seconds=7200.0, pause_seconds=0.1)
    assert run is not None
    if run["status"] != "finished":
        raise RuntimeError(f"Run {run_id} is {run['status']}: {run['error']}")
    return run


def peak_of_server(home: Path, config: Mapping[str, Any]) -> float:
    """The peak memory, in MB, of all processes of a server while it trains a run. Raises as ``finished``."""
    with serving(home) as server:
        client = server.client
        run_id = client.start_run(**config)["id"]
        peak = peak_mb(server.pid, lambda: client.run(run_id)["status"] in TERMINAL)
        finished(client, run_id)
    return peak


class OpenPage:
    """One open run page: asks again as its script does, and fetches the figures and pictures that are new."""

    def __init__(self, http: httpx.Client, run_id: str) -> None:
        self._http, self._path = http, f"/runs/{run_id}"
        self._tag = ""
        self._seen: set[tuple[str, str]] = set()  # address and version of what was fetched
        self.num_requests = 0

    def ask(self) -> int:
        """One request for the page, with all that follows from it; the page's status code."""
        headers = {"Accept": "text/html", "HX-Request": "true", **({"HX-PTag": self._tag} if self._tag else {})}
        answer = self._get(self._path, headers)
        if answer.status_code == 200:
            self._tag = answer.headers["HX-PTag"]
            figures = re.findall(r'data-figure="([^"]+)"\s+data-version="([^"]+)"', answer.text)
            pictures = [(source, "") for source in re.findall(r'<img [^>]*\bsrc="([^"]+)"', answer.text)]
            for address, version in [*figures, *pictures]:
                if (address, version) not in self._seen:
                    self._seen.add((address, version))
                    self._get(address.replace("&amp;", "&"), {}).raise_for_status()
        return answer.status_code

    def _get(self, address: str, headers: dict[str, str]) -> httpx.Response:
        self.num_requests += 1
        return self._http.get(address, headers=headers)


@contextmanager
def open_page(url: str, run_id: str, every_seconds: float = 1.0) -> Iterator[OpenPage]:
    """A page that is open during the block, asking once a second. Raises what a request raised."""
    problems: list[Exception] = []
    closed = threading.Event()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        page = OpenPage(http, run_id)

        def stay() -> None:
            try:
                while not closed.is_set():
                    page.ask()
                    closed.wait(every_seconds)
            except Exception as problem:
                problems.append(problem)

        thread = threading.Thread(target=stay, name="open page", daemon=True)
        thread.start()
        try:
            yield page
        finally:
            closed.set()
            thread.join()
    if problems:
        raise problems[0]
