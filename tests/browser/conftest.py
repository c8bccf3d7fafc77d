"""A real server and a real Chromium for the browser tests. Skipped, with one line, where Chromium is missing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from app.runs.executors.local import LocalExecutor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_START_SECONDS = 60.0
expect.set_options(timeout=60_000)


@dataclass
class Server:
    """A running server: its address and its folder."""

    url: str
    home: Path
    api: httpx.Client = field(repr=False)

    def wait_for(self, run_id: str, *statuses: str, seconds: float = 120.0) -> dict[str, Any]:
        """The run once it has one of the statuses."""
        deadline = time.monotonic() + seconds
        while True:
            run: dict[str, Any] = self.api.get(f"/runs/{run_id}").raise_for_status().json()
            if run["status"] in statuses:
                return run
            assert time.monotonic() < deadline, f"{run['status']}: {run['progress']} {run['error']}"
            time.sleep(0.1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a free port and an empty HOME, with its host; nothing of it is left afterwards."""
    home = tmp_path_factory.mktemp("home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "RUNOFF_DATASETS"}
    environment |= {"RUNOFF_HOME": str(home), "RUNOFF_PORT": str(port), "RUNOFF_MEASURE": "false"}
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=f"{url}/api/v1", timeout=30, trust_env=False) as api:
            _wait_until_up(url, process, home)
            yield Server(url, home, api)
    finally:
        process.terminate()
        process.wait(timeout=30)
        LocalExecutor(home).end_host()


def _wait_until_up(url: str, process: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None, (home / "server.log").read_text()
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).is_success:
                return
        except httpx.HTTPError:
            assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, driven by Playwright."""
    if CHROMIUM is None:
        pytest.skip("Chromium is missing: apt-get install -y chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Console:
    """What a page complained about; must be empty at a test's end."""

    lines: list[str] = field(default_factory=list)

    def listen(self, page: Page) -> None:
        page.on("console", lambda message: self.lines.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.lines.append(str(error)))


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.fixture
def context(chromium: Browser, server: Server, console: Console) -> Iterator[BrowserContext]:
    """A fresh browser profile at desktop width; every page of it is listened to."""
    context = chromium.new_context(base_url=server.url, viewport={"width": 1280, "height": 900})
    context.set_default_timeout(60_000)
    context.on("page", console.listen)
    yield context
    context.close()
    assert console.lines == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()
