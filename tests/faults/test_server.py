"""Faults around a server: signals, a second server, a missing home, too many clients, a trainer host that can't start."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.client import Client
from app.runs.executors.local import LocalExecutor
from tests.faults.conftest import Count
from tests.faults.servers import BASE, wait_for

pytestmark = pytest.mark.faults
full_form = pytest.mark.full
LONG = {**BASE, "epochs": 2000}


class Process:
    """A server process, with what it prints in a file."""

    def __init__(
        self, home: Path, port: int, *, wait: bool = True, prepare: Callable[[], None] | None = None, **settings: str
    ) -> None:
        self.home, self.url = home, f"http://127.0.0.1:{port}"
        self.client = Client(self.url)
        self.output = home.with_name(f"printed-{port}-{time.monotonic_ns()}.txt")
        home.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "RUNOFF_HOME": str(home), "RUNOFF_PORT": str(port), "RUNOFF_MEASURE": "false"}
        command = [sys.executable, "-m", "app.cli", "serve"]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                command, env=environment | settings, stdout=output, stderr=subprocess.STDOUT, preexec_fn=prepare
            )
        if wait:
            wait_for(self.client.is_up)

    @property
    def printed(self) -> str:
        return self.output.read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.client.close()
        return self.process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def spot(tmp_path: Path) -> Iterator[Path]:
    """A home. Its trainer host is ended after the test."""
    home = tmp_path / "home"
    yield home
    LocalExecutor(home).end_host()


@pytest.mark.full
@pytest.mark.parametrize("same", ["port", pytest.param("home", marks=full_form), pytest.param("link", marks=full_form)])
def test_of_two_servers_one_ends_with_a_sentence(spot: Path, same: str, full: bool, count: Count) -> None:
    times = 10 if full else 1
    for number in range(times):
        homes = [spot, spot]
        if same == "link":
            link = spot.with_name(f"link{number}")
            link.symlink_to(spot)
            homes = [spot, link]
        if same == "port":
            homes = [spot, spot.with_name("other")]
        port = free_port()
        pair = [Process(home, port if same == "port" else free_port(), wait=False) for home in homes]
        wait_for(lambda pair=pair: any(each.process.poll() is not None for each in pair))  # type: ignore[misc]
        [loser] = [each for each in pair if each.process.poll() is not None]
        [winner] = [each for each in pair if each is not loser]
        wait_for(winner.client.is_up)
        assert loser.process.returncode == 1
        assert len(loser.printed.splitlines()) == 1, loser.printed
        assert ("already running" in loser.printed) == (same != "port")
        assert winner.end() == 0
        assert len(winner.printed.splitlines()) == 1, winner.printed
    LocalExecutor(spot.with_name("other")).end_host()
    count(f"two servers at once, the same {same}", times, "one sentence and status 1")


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGTERM],
        pytest.param([signal.SIGINT], marks=full_form),
        pytest.param([signal.SIGTERM, signal.SIGTERM], marks=full_form),
    ],
)
def test_a_signal_ends_open_streams_quietly(spot: Path, signals: list[int], count: Count) -> None:
    server = Process(spot, free_port())
    run = server.client.start_run(**LONG)["id"]
    wait_for(lambda: server.client.run(run)["epochs_done"])
    big = spot / "runs" / run / "log.txt"
    big.write_bytes(b"x" * 50_000_000)
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        streams = [
            stack.enter_context(httpx.stream("GET", f"{server.url}/api/v1/runs/{run}/events")) for _n in range(3)
        ]
        reading = [pool.submit(lambda stream=stream: list(_lines(stream))) for stream in streams]  # type: ignore[misc]
        download = stack.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)))
        download.sendall(f"GET /api/v1/runs/{run}/files/log.txt HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert download.recv(100).startswith(b"HTTP/1.1 200")
        for number in signals:
            server.process.send_signal(number)
        assert server.process.wait(timeout=30) == 0
        assert all(future.result() for future in reading)
    server.client.close()
    assert "Traceback" not in server.printed
    assert len(server.printed.splitlines()) <= 2, server.printed  # the greeting, and that a download was cut
    again = Process(spot, free_port())
    again.client.call("POST", f"/runs/{run}/cancel")
    wait_for(lambda: again.client.run(run)["status"] != "running")
    assert again.end() == 0
    count(f"{len(signals)} x {signal.Signals(signals[0]).name} with three streams and a download", 1, "status 0, quiet")


def _lines(stream: httpx.Response) -> Iterator[str]:
    with suppress(httpx.HTTPError):
        yield from stream.iter_lines()


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=full_form)])
def test_a_signal_during_the_start_is_quiet(spot: Path, number: int, full: bool, count: Count) -> None:
    delays = [0.05 * step for step in range(60)] if full else [0.2, 0.7, 1.2]
    for delay in delays:
        server = Process(spot, free_port(), wait=False)
        time.sleep(delay)
        assert server.end(number) in (0, -number)  # the signal itself, while modules are loaded
        assert "Traceback" not in server.printed, server.printed
    count(f"{signal.Signals(number).name} during the start", len(delays), "no traceback")


@pytest.mark.full
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
@pytest.mark.parametrize("part", ["home", "runs"])
def test_a_server_waits_for_an_unmounted_home(spot: Path, part: str, tmp_path: Path, count: Count) -> None:
    disk, point = tmp_path / "disk", spot if part == "home" else spot / "runs"
    disk.mkdir()
    point.mkdir(parents=True)
    if subprocess.run(["mount", "--bind", disk, point]).returncode:
        pytest.skip("this process can't mount a file system")
    server = Process(spot, free_port(), RUNOFF_SLOTS="1")
    try:
        first, second = (server.client.start_run(**{**BASE, "epochs": 12, "seed": seed})["id"] for seed in (1, 2))
        wait_for(lambda: server.client.run(first)["epochs_done"])
        subprocess.run(["umount", "--lazy", point], check=True)
        refused = httpx.post(f"{server.url}/api/v1/runs", json=BASE)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        for page in ("/runs", "/runs/new", "/datasets", "/check", f"/runs/{first}", "/api/v1/devices"):
            assert httpx.get(server.url + page, headers={"Accept": "text/html"}).status_code in (200, 404, 503)
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "degraded"}
        wait_for(lambda: "missing or was replaced" in server.printed, 30)  # the scheduler has looked
        assert list(point.iterdir()) == []
        subprocess.run(["mount", "--bind", disk, point], check=True)
        wait_for(lambda: httpx.get(f"{server.url}/healthz").json() == {"status": "ok"})
        if wait_for(lambda: server.client.run(first)["finished_at"] and server.client.run(first)["status"]) == "failed":
            server.client.call("POST", f"/runs/{first}/resume")  # it could not save meanwhile
        for run in (first, second):
            wait_for(lambda run=run: server.client.run(run)["status"] == "finished", 60)  # type: ignore[misc]
        assert "Traceback" not in server.printed
    finally:
        server.end()
        LocalExecutor(spot).end_host()
        subprocess.run(["umount", "--lazy", point], check=False)
    count(f"{part} unmounted while runs train", 1, "nothing is made below the mount point; runs finish when it is back")


def test_more_clients_than_descriptors_get_a_503(spot: Path, full: bool, count: Count) -> None:
    server = Process(spot, free_port(), prepare=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    run = server.client.start_run(**BASE)["id"]
    paths = ["/runs", "/api/v1/runs", f"/runs/{run}", "/api/v1/system", "/missing", "/datasets"]
    seen: Counter[Any] = Counter()
    deadline = time.monotonic() + (30 if full else 5)

    def ask(number: int) -> None:
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                answer = httpx.get(server.url + paths[number % len(paths)], headers={"Accept": "text/html"}, timeout=10)
                seen[answer.status_code, "retry-after" in answer.headers] += 1

    idle = [socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) for _number in range(10)]
    with ThreadPoolExecutor(64) as pool:
        list(pool.map(ask, range(64)))
    for connection in idle:
        connection.close()
    assert set(seen) <= {(200, False), (404, False), (503, True)}
    assert seen[200, False] > 0
    assert len(server.printed) < 100_000
    wait_for(lambda: server.client.run(run)["status"] == "finished")
    assert server.end() == 0
    count(
        "64 clients of a server with 64 descriptors",
        sum(seen.values()),
        f"no 500; {len(server.printed):,} bytes of log",
    )


@pytest.mark.full
def test_repeated_bad_requests_do_not_fill_the_log(spot: Path, count: Count) -> None:
    server = Process(spot, free_port())
    with httpx.Client() as client:
        for _number in range(4000):
            assert client.get(f"{server.url}/missing").status_code == 404
    for _number in range(200):
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0)) as connection:
            connection.sendall(b"\x00\x01 nonsense\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert len(server.printed) < 2_000
    assert server.end() == 0
    count("requests for a missing page, and malformed ones", 4200, f"{len(server.printed):,} bytes of log")


@pytest.mark.full
def test_why_no_host_starts_is_shown_until_it_does(spot: Path, count: Count) -> None:
    """The home is too deep for a socket, and the folder for it is in the way."""
    from trainer import wire

    home = spot / ("x" * 120)
    home.mkdir(parents=True)
    blocked = wire.socket_path(home, wire.code_version()).parent
    blocked.write_text("in the way")
    server = Process(home, free_port())
    run = server.client.start_run(**BASE)["id"]
    try:
        [problem] = wait_for(lambda: server.client.call("GET", "/system")["problems"])
        assert str(blocked) in problem
        assert server.client.run(run)["queue_reason"] == "host"
        page = httpx.get(f"{server.url}/runs/{run}", headers={"Accept": "text/html"}).text
        assert page.count(str(blocked)) >= 2, "in the banner and beside the status"
    finally:
        blocked.unlink()
    wait_for(lambda: server.client.run(run)["status"] == "finished")
    assert server.client.call("GET", "/system")["problems"] == []
    assert server.end() == 0
    LocalExecutor(home).end_host()
    shutil.rmtree(blocked, ignore_errors=True)
    count("the socket of the trainer host can't be made", 1, "shown on the page; runs start when it can")
