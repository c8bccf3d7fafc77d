"""The server is killed or stopped while it imports images: the import continues from the stored upload."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from app.cli.client import ClientError
from tests.faults.conftest import Count
from tests.faults.servers import Server, wait_for
from trainer.datasets import catalogue, worker

pytestmark = [pytest.mark.faults, pytest.mark.full]


@pytest.fixture(scope="module")
def archive(full: bool) -> bytes:
    return images_archive(4000 if full else 2000, side=80)


@pytest.fixture(scope="module")
def fingerprints(archive: bytes, tmp_path_factory: pytest.TempPathFactory) -> tuple[str | None, str | None]:
    """Those of an import that nobody disturbed."""
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "images.zip").write_bytes(archive)
    for _progress in worker.import_images(home, "images", home / "images.zip"):
        pass
    return fingerprints_of(home, "images")


@pytest.fixture
def importer(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "home")
    yield server
    server.close()


def images_archive(count: int, side: int) -> bytes:
    """A zip of two classes of random colour images."""
    chance, file = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(count):
            image = io.BytesIO()
            Image.fromarray(chance.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(image, "PNG")
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", image.getvalue())
    return file.getvalue()


def fingerprints_of(home: Path, name: str) -> tuple[str | None, str | None]:
    made = catalogue.get_dataset(home, name)
    return made.train_fingerprint, made.test_fingerprint


def upload(server: Server, name: str, archive: bytes) -> None:
    server.client.call("POST", "/datasets", files={"file": ("images.zip", archive)}, data={"name": name})


def state_of(server: Server, name: str) -> dict[str, Any]:
    """The data set as the API shows it; empty if there is none."""
    answer = httpx.get(f"{server.client.url}/api/v1/datasets/{name}", timeout=30)
    return dict(answer.json()) if answer.is_success else {}


def is_ready(server: Server, name: str) -> bool:
    found = state_of(server, name)
    assert not (found.get("work") or {}).get("error"), found
    return found.get("status") == "ready" and found["work"] is None


def progress_of(server: Server, name: str) -> tuple[str, float]:
    """What is done, and which part of it."""
    work = state_of(server, name).get("work") or {"what": "nothing", "done": 0, "total": 0}
    return work["what"], work["done"] / max(work["total"], 1)


def makers(home: Path) -> list[psutil.Process]:
    """The processes that make caches below a home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "trainer.datasets" in line and any(str(home) in word for word in line):
            found.append(process)
    return found


def kill_server(server: Server) -> None:
    server.kill()


def kill_all(server: Server) -> None:
    """As a service manager or the kernel does, when memory runs out."""
    processes = makers(server.home)
    server.kill()
    for process in processes:
        process.kill()
        process.wait()


def stop_server(server: Server) -> None:
    server.stop()


def stop_all(server: Server) -> None:
    """As a service manager does: every process of the server is asked to end."""
    for process in makers(server.home):
        process.terminate()
    server.stop()


WAYS: tuple[Callable[[Server], None], ...] = (kill_all, kill_server, stop_all, stop_server)


def test_an_interrupted_import_continues(
    importer: Server,
    archive: bytes,
    fingerprints: tuple[str | None, str | None],
    full: bool,
    count: Count,
    chance: random.Random,
) -> None:
    rounds = 24 if full else 1
    moments = [("import", 0.0), ("cache", 0.0), ("cache", 0.5)]
    shown: list[float] = []
    for number in range(rounds):
        name, interrupt = f"images-{number}", WAYS[number % len(WAYS)]
        what, part = moments[number // len(WAYS) % len(moments)] if full else chance.choice(moments)
        upload(importer, name, archive)
        wait_for(partial(has_come, importer, name, what, part))
        interrupt(importer)
        assert (importer.home / "uploads" / name / "images.zip").stat().st_size == len(archive)
        began = time.monotonic()
        importer.start()
        assert state_of(importer, name)["work"]["error"] is None
        shown.append(time.monotonic() - began)
        with pytest.raises(ClientError) as refused:
            upload(importer, name, archive)
        assert (refused.value.status, refused.value.errors[0]["field"]) == (409, "name")
        wait_for(partial(is_ready, importer, name))
        assert fingerprints_of(importer.home, name) == fingerprints
        assert [*(importer.home / "uploads").iterdir()] == []
        assert [*(importer.home / "datasets" / ".making").iterdir()] == []
        importer.client.call("DELETE", f"/datasets/{name}")
    result = f"all continue and give the same images; shown after the restart within {max(shown):.1f} s"
    count("the server killed or stopped during an import", rounds, result)


def has_come(server: Server, name: str, what: str, part: float) -> bool:
    done = progress_of(server, name)
    assert done[0] != "nothing", "the import ended before it was interrupted"
    return (done[0] == what and done[1] >= part) or (what == "import" and done[0] == "cache")


def test_an_import_of_the_command_line_that_is_killed_leaves_nothing(
    tmp_path: Path, archive: bytes, full: bool, count: Count
) -> None:
    rounds = 4 if full else 1
    home, source = tmp_path / "home", tmp_path / "images.zip"
    source.write_bytes(archive)
    making = home / "datasets" / ".making"
    for number in range(rounds):
        arguments = [sys.executable, "-m", "app.cli", "datasets", "import", str(source), "--name", "images"]
        command = subprocess.Popen(arguments, env={**os.environ, "RUNOFF_HOME": str(home)}, stdout=subprocess.DEVNULL)
        wait_for(lambda: (making / "images" / "rows").exists())
        children = psutil.Process(command.pid).children()
        command.kill()
        command.wait()
        if number % 2 == 0:  # else the child notices that nobody listens
            for process in children:
                process.kill()
                process.wait()
            assert [path.name for path in making.iterdir()] == ["images"]
            server = Server(home)
            server.close()
        wait_for(lambda: not [*making.iterdir()])
        assert not (home / "datasets" / "images").exists()
    count("the command runoff datasets import killed", rounds, "nothing stays after the next start")
