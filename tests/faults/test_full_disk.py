"""The disk is filled and freed again: the true state is shown, work continues automatically, and the log stays short.

The home is on a small ext4 file system in a file.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.client import ClientError
from app.store.database import SCHEMA
from tests.faults.conftest import Count
from tests.faults.servers import BASE, Server, wait_for
from tests.faults.test_imports import images_archive, is_ready, state_of, upload
from tests.faults.test_power_cuts import Disk, disk

__all__ = ["disk"]  # a fixture
pytestmark = [
    pytest.mark.faults,
    pytest.mark.full,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 is not installed"),
]
MB = 10**6
RESERVE_MB = 10
EPOCHS = 40  # more than are trained before the disk is full
LONGEST_LOG = 100_000  # bytes, over all rounds


class Filler:
    """A file that fills the disk beside the home."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "filler"

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes free."""
        with self._path.open("ab") as file:
            while self.free > leave + MB:
                self._write(file.fileno(), MB)
            while (not leave or self.free > leave) and self._write(file.fileno(), 4096):
                pass  # to the last block, which is kept for root
            os.fsync(file.fileno())

    def _write(self, descriptor: int, size: int) -> int:
        try:
            return os.write(descriptor, bytes(size))
        except OSError:
            return 0

    @property
    def free(self) -> int:
        return shutil.disk_usage(self._path.parent).free

    def empty(self) -> None:
        self._path.unlink(missing_ok=True)


@pytest.fixture
def filler(disk: Disk) -> Filler:
    return Filler(disk.path)


@pytest.fixture
def small(disk: Disk, filler: Filler, tmp_path: Path) -> Iterator[Server]:
    """A server whose home is on the small disk, with one finished run."""
    server = Server(disk.path / "home", log=tmp_path / "log", RUNOFF_RESERVE_MB=str(RESERVE_MB))
    server.wait_status(server.begin(**BASE, epochs=1), "finished")
    yield server
    filler.empty()
    server.close()


@pytest.fixture(scope="module")
def archive() -> bytes:
    """4 MB, and as much again for each of the two copies of its decoded images."""
    return images_archive(1000, side=36)


Round = Callable[[Server, Filler, bytes, int], None]


def during_a_run(server: Server, filler: Filler, archive: bytes, number: int) -> None:
    run = server.begin(**BASE, seed=100 + number, epochs=EPOCHS)
    server.wait_epochs(run, 1)
    filler.fill()
    server.wait_status(run, "failed", "queued")
    assert not server.folder(run).is_alive()
    assert is_degraded(server)
    filler.empty()
    server.wait_status(run, "finished")
    assert server.epochs(run) == [*range(1, EPOCHS + 1)]


def during_an_import(server: Server, filler: Filler, archive: bytes, number: int) -> None:
    name = f"import-{number}"
    filler.fill(leave=RESERVE_MB * MB + 2 * len(archive) + MB)
    upload(server, name, archive)
    wait_for(lambda: state_of(server, name)["work"]["waiting"])
    filler.fill()
    if number % 2:  # a restart on the full disk
        server.kill()
        server.start()
        wait_for(lambda: state_of(server, name)["work"]["waiting"])
    assert is_degraded(server)
    page = httpx.get(f"{server.client.url}/datasets", headers={"Accept": "text/html"}).text
    assert "It continues automatically when there is enough space." in page
    filler.empty()
    wait_for(lambda: is_ready(server, name))
    server.client.call("DELETE", f"/datasets/{name}")


def during_an_upload(server: Server, filler: Filler, archive: bytes, number: int) -> None:
    name = f"upload-{number}"
    filler.fill(leave=(RESERVE_MB * MB + MB) * (number % 2))
    sent = {"file": ("images.zip", archive)}
    for accept in ("application/json", "text/html"):
        path = "/api/v1/datasets" if accept == "application/json" else "/datasets"
        request = httpx.Request(
            "POST", server.client.url + path, headers={"Accept": accept}, data={"name": name}, files=sent
        )
        if number // 2 % 2:  # of unknown length: it is refused while it is read
            body, headers = request.read(), {"Accept": accept, "Content-Type": request.headers["Content-Type"]}
            request = httpx.Request("POST", server.client.url + path, headers=headers, content=iter([body]))
        with httpx.Client(timeout=60) as client:
            answer = client.send(request)
        assert answer.status_code == 507, answer.text
        assert "Free some space, then" in answer.text
    assert [*(server.home / "uploads").iterdir()] == []
    assert state_of(server, name) == {}
    filler.empty()
    upload(server, name, archive)
    wait_for(lambda: is_ready(server, name))
    server.client.call("DELETE", f"/datasets/{name}")


def during_a_start(server: Server, filler: Filler, archive: bytes, number: int) -> None:
    filler.fill(leave=RESERVE_MB * MB // 2)
    run = server.begin(**BASE, seed=200 + number, epochs=1)
    server.kill() if number % 2 else server.stop()
    filler.fill()
    server.start()
    assert is_degraded(server)
    shown = server.client.run(run)
    assert (shown["status"], shown["queue_reason"]) == ("queued", "disk")
    with pytest.raises(ClientError) as refused:
        server.begin(**BASE, seed=300 + number, epochs=1)
    assert refused.value.status == 503
    filler.empty()
    server.wait_status(run, "finished")
    assert not is_degraded(server)


def during_a_migration(server: Server, filler: Filler, archive: bytes, number: int) -> None:
    server.stop()
    index = server.home / "runoff.sqlite3"
    with closing(sqlite3.connect(index)) as connection:
        runs = connection.execute("SELECT count(*) FROM run").fetchone()
        for column in ("imported", "machines", "hanging_since", "queue_reason"):
            connection.execute(f"ALTER TABLE run DROP COLUMN {column}")
        connection.execute("UPDATE alembic_version SET version_num = '0004'")
        connection.commit()
    before = index.read_bytes()
    (server.home / f"{index.name}.before-{SCHEMA}").unlink(missing_ok=True)
    filler.fill(leave=len(before) // 2 * (number % 2))  # with space for a part of the copy, or for nothing
    assert failed_start(server) == 1
    assert index.read_bytes() == before
    new = Server.__new__(Server)
    new.__dict__ |= server.__dict__ | {"home": server.home.with_name("new")}
    filler.fill()
    assert failed_start(new) == 1
    shutil.rmtree(new.home, ignore_errors=True)
    filler.empty()
    server.start()
    assert server.client.runs(limit=1)["total"] == runs[0]


def failed_start(server: Server) -> int:
    """The exit code of a server that can't start and says why in one line."""
    assert server.log is not None
    before = server.log.read_text()
    code = server.open().wait(60)
    said = server.log.read_text().removeprefix(before)
    assert said.count("\n") == 1, said
    assert "full" in said
    assert "Free some space" in said
    return code


def is_degraded(server: Server) -> bool:
    system: dict[str, Any] = server.client.call("GET", "/system")
    health = httpx.get(f"{server.client.url}/healthz").json()
    assert system["status"] == health["status"]
    return bool(system["status"] == "degraded")


@pytest.mark.parametrize(
    "round_of", [during_a_run, during_an_import, during_an_upload, during_a_start, during_a_migration]
)
def test_a_full_disk(small: Server, filler: Filler, archive: bytes, full: bool, count: Count, round_of: Round) -> None:
    rounds = 6 if full else 1
    for number in range(rounds):
        round_of(small, filler, archive, number)
    assert small.log is not None
    log = small.log.read_text()
    assert "Traceback" not in log
    assert len(log) < LONGEST_LOG
    what = round_of.__name__.replace("_", " ")
    count(f"disk full {what}", rounds, f"shown, and continued when there was space; log: {len(log):,} bytes")
