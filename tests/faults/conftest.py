"""How many faults there are, what decides at random, and the table of what was tried."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.cli.client import ClientError
from tests.faults.servers import Server

Count = Callable[[str, int, str], None]


def pytest_report_header(config: pytest.Config) -> str:
    return f"faults: {'full' if config.option.full else 'quick'} form, --fault-seed={config.option.fault_seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out of the quick form what takes long and is no other kind of fault."""
    if not config.option.full:
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if rows:
        terminalreporter.section("faults")
        for row in ("| what | tried | result |", "|---|---|---|", *rows):
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.option.full)


@pytest.fixture
def chance(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> random.Random:
    """The random choices of a test. They follow from ``--fault-seed`` and the name of the test."""
    seed = pytestconfig.option.fault_seed
    print(f"--fault-seed={seed}")  # noqa: T201  (pytest shows it if the test fails)
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Count:
    """Adds a row to the table at the end: what was tried, how often, with which result."""
    begin = time.monotonic()

    def add(what: str, tried: int, result: str) -> None:
        record_property("fault", f"| {what} | {tried:,} | {result} (after {time.monotonic() - begin:.0f} s) |")

    return add


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("faults") / "home")
    yield server
    with contextlib.suppress(ClientError):
        for status in ("queued", "running"):
            for run in server.client.runs(status=status)["runs"]:
                server.client.call("POST", f"/runs/{run['id']}/cancel")
        for run in server.client.runs(limit=1000)["runs"]:
            server.wait_status(run["id"], "finished", "failed", "cancelled", "damaged")
    server.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")
