"""A wheel, installed into a virtual environment of its own, is a whole Runoff: in an empty folder and in a student's."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest

from tests import strangers

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
DIGITS = {"dataset": "digits", "model": "fc", "epochs": 2}
START_SECONDS = TRAIN_SECONDS = 120.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``pip install .`` and an upload to an index are made of, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it; the libraries are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel)],
        check=True,
    )
    libraries = [path for path in sys.path if Path(path).name == "site-packages"]
    (_packages(folder) / "libraries.pth").write_text("\n".join(libraries) + "\n")
    return folder


def _packages(environment: Path) -> Path:
    (packages,) = environment.glob("lib/python*/site-packages")
    return packages


def test_the_wheel_holds_the_packages_and_all_that_they_read(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    places = {
        "app": "app",
        "trainer": "trainer",
        "templates": "app/templates",
        "static": "app/static",
        "docs": "app/docs",
    }
    expected = set()
    for path in tracked.split("\0"):
        top, _slash, rest = path.partition("/")
        if top in places and (ROOT / path).exists():
            expected.add(f"{places[top]}/{rest}")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith("runoff-")}
    assert expected - names == set()
    assert {name.split("/")[0] for name in names} == {"app", "trainer"}


def test_nothing_else_is_installed(environment: Path) -> None:
    names = {path.name for path in _packages(environment).iterdir()} - {"libraries.pth"}
    (metadata,) = (name for name in names if name.startswith("runoff-"))
    assert names == {"app", "trainer", metadata}
    where = [sys.executable, str(environment / "bin" / "python")]
    assert where[0] != where[1]
    question = "import app, trainer; print(app.__file__, trainer.__file__)"
    said = subprocess.run([where[1], "-P", "-c", question], capture_output=True, text=True, check=True).stdout
    assert all(path.startswith(str(environment)) for path in said.split())


def test_it_serves_and_trains_in_a_students_folder(environment: Path, tmp_path: Path) -> None:
    folder = strangers.fill(tmp_path / "folder")
    files = sorted(folder.iterdir())
    with serving(environment, folder, tmp_path / "home", "--reload") as browser:
        run = browser.post("/api/v1/runs", json=DIGITS).raise_for_status().json()
        wait_for(lambda: status_of(browser, run["id"]) not in ("queued", "running"), TRAIN_SECONDS)
        assert status_of(browser, run["id"]) == "finished"
        assert_page_is_whole(browser, f"/runs/{run['id']}")
    assert sorted(folder.iterdir()) == files, "nothing is written where the server was started"


def test_the_demo_serves_and_trains_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    """The demo starts ``runoff serve``, trains three nets, and ends with the address of their comparison."""
    folder, home = tmp_path / "folder", tmp_path / "home"
    folder.mkdir()
    port = free_port()
    demo = subprocess.Popen(
        [environment / "bin" / "runoff", "demo"],
        cwd=folder,
        env=environment_variables(home) | {"RUNOFF_PORT": str(port)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    with demo, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as browser:
        try:
            (address,) = re.findall(r"/compare\?run=\w+&run=\w+&run=\w+", next(filter(is_comparison, demo.stdout)))
            assert_page_is_whole(browser, address)
        finally:
            demo.send_signal(signal.SIGINT)
    assert list(folder.iterdir()) == [], "nothing is written where the demo was started"


def is_comparison(line: str) -> bool:
    return "/compare?" in line


def assert_page_is_whole(browser: httpx.Client, address: str) -> None:
    """The page has style sheets and a figure with points."""
    page = browser.get(address, headers={"Accept": "text/html"}).raise_for_status().text
    sheets = re.findall(r'<link rel="stylesheet"[^>]* href="([^"]+)"', page)
    assert sheets
    assert all("{" in browser.get(sheet).raise_for_status().text for sheet in sheets)
    (figure, *_others) = re.findall(r'data-figure="([^"]+)"', page)
    assert any(trace["y"] for trace in browser.get(unescape(figure)).raise_for_status().json()["data"])


@contextmanager
def serving(environment: Path, folder: Path, home: Path, *options: str) -> Iterator[httpx.Client]:
    """The installed server, started in ``folder``."""
    port = free_port()
    with subprocess.Popen(
        [environment / "bin" / "runoff", "serve", "--port", str(port), *options],
        cwd=folder,
        env=environment_variables(home),
    ) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as browser:
                wait_for(lambda: server.poll() is not None or is_up(browser), START_SECONDS)
                yield browser
        finally:
            server.terminate()


def environment_variables(home: Path) -> dict[str, str]:
    """What a person's shell has, without the settings and paths of the one that runs the tests."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("RUNOFF_", "PYTHON", "VIRTUAL_ENV"))
    }
    return kept | {"RUNOFF_HOME": str(home), "RUNOFF_MEASURE": "false"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_up(browser: httpx.Client) -> bool:
    try:
        return browser.get("/healthz").is_success
    except httpx.TransportError:
        return False


def status_of(browser: httpx.Client, run_id: str) -> str:
    run: dict[str, Any] = browser.get(f"/api/v1/runs/{run_id}").raise_for_status().json()
    return str(run["status"])


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)
