"""Imports that are interrupted, fail or lack space: what is kept, what is shown, and what is removed."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app import datasets, uploads
from app.datasets import MOST_INTERRUPTIONS, Imports
from app.errors import Conflict, InsufficientStorage
from app.main import create_app
from app.settings import Settings
from app.store.database import IndexUnusable, open_index
from app.web import security
from tests.app.test_pages_datasets import make_zip
from trainer.datasets import cache, worker
from trainer.datasets.errors import DatasetError, DiskFull, Interrupted
from trainer.events import Progress
from trainer.files import read_sealed, to_iso, write_sealed

Usage = namedtuple("Usage", "total used free")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
DISK_FULL = DiskFull("The disk has 1 MB left; this import needs 9 MB.", "Free some space.", needed=9_000_000)


class Work:
    """Stands in for the import in a child process: each attempt takes the next step, then waits until it may end."""

    def __init__(self, *steps: Exception | None) -> None:
        self.steps = [*steps]
        self.attempts: list[Path] = []
        self.child = Child()

    def __call__(self, home: Path, name: str, source: Path, *, on_start: Any, **_options: Any) -> Iterator[Progress]:
        assert source.read_bytes() == b"archive"
        self.child = Child()
        on_start(self.child)
        self.attempts.append(source)
        yield Progress("import", 1, 7, "bytes")
        step = self.steps.pop(0) if self.steps else None
        if step is not None:
            raise step
        self.child.wait()
        if self.child.was_terminated:
            raise Interrupted("The process was ended.")


class Child:
    """A child process that ends when it is told to."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self.was_terminated = False

    def terminate(self) -> None:
        self.was_terminated = True
        self._end.set()

    def finish(self) -> None:
        self._end.set()

    def wait(self) -> None:
        assert self._end.wait(30)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    work = Work()
    monkeypatch.setattr(worker, "import_images", work)
    monkeypatch.setattr(datasets, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(datasets, "_ENDING_SECONDS", 0.01)
    return work


@pytest.fixture
def imports(home: Path, work: Work) -> Iterator[Imports]:
    imports = Imports(home)
    imports.resume()
    yield imports
    imports.end()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def begin(imports: Imports, name: str = "pets") -> None:
    imports.begin_import(io.BytesIO(b"archive"), "my pets.zip", name, 32)


def restarted(imports: Imports) -> Imports:
    """The imports of a server that starts on the home of one that was killed."""
    server = Imports(imports.home)
    server.resume()
    return server


def has_begun(work: Work, attempts: int) -> bool:
    return len(work.attempts) == attempts


def files_in(home: Path) -> set[str]:
    folder = home / "uploads"
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def error_of(imports: Imports, name: str = "pets") -> str:
    found = imports.find(name)
    return " ".join((found.error or {}).values()) if found else ""


# Restarts ------------------------------------------------------------------------------------------------------------


def test_an_upload_is_kept_with_its_description_and_removed_at_the_end(imports: Imports, work: Work) -> None:
    begin(imports)
    wait_for(lambda: work.attempts)
    assert files_in(imports.home) == {"pets", "pets/my pets.zip", "pets.json"}
    about = read_sealed(imports.home / "uploads" / "pets.json") or {}
    assert (about["file"], about["num_bytes"], about["size"]) == ("my pets.zip", 7, 32)
    work.child.finish()
    wait_for(lambda: not imports.active())
    assert files_in(imports.home) == set()


def test_a_killed_server_continues_the_import_at_its_next_start(imports: Imports, work: Work) -> None:
    begin(imports)
    wait_for(lambda: work.attempts)
    server = restarted(imports)
    wait_for(lambda: len(work.attempts) == 2)
    assert server.is_active("pets")
    with pytest.raises(Conflict) as refused:
        begin(server)
    assert [problem.field for problem in refused.value.errors] == ["name"]
    work.child.finish()
    wait_for(lambda: not server.active())
    assert files_in(imports.home) == set()


def test_an_orderly_stop_keeps_the_import(imports: Imports, work: Work) -> None:
    for attempt in range(1, MOST_INTERRUPTIONS + 3):
        begin(imports) if attempt == 1 else None
        wait_for(partial(has_begun, work, attempt))
        imports.end()
        assert work.child.was_terminated
        assert files_in(imports.home) == {"pets", "pets/my pets.zip", "pets.json"}
        imports = restarted(imports)
    imports.end()


def test_a_service_manager_that_ends_all_processes_at_once_loses_no_import(imports: Imports, work: Work) -> None:
    work.steps = [Interrupted("The process was ended.")]
    begin(imports)
    wait_for(lambda: len(work.attempts) == 2)
    work.child.finish()
    wait_for(lambda: not imports.active())


def test_an_import_that_ends_every_server_is_given_up(imports: Imports, work: Work) -> None:
    begin(imports)
    servers = [imports]
    for attempt in range(1, MOST_INTERRUPTIONS + 1):
        wait_for(partial(has_begun, work, attempt))
        servers.append(restarted(imports))
    assert len(work.attempts) == MOST_INTERRUPTIONS
    assert "ended unexpectedly 3 times during this import" in error_of(servers[-1])
    assert files_in(imports.home) == {"pets.json"}
    assert error_of(restarted(imports)) == error_of(servers[-1])


def test_incomplete_uploads_are_removed_at_the_start(home: Path, imports: Imports, work: Work) -> None:
    (home / "uploads" / "half").mkdir()
    (home / "uploads" / "half" / "images.zip").write_bytes(b"arch")
    (home / "uploads" / ".half.json.12ab.tmp").write_bytes(b"{")
    (home / "uploads" / "tmp12ab").write_bytes(b"x")
    assert restarted(imports).active() == []
    assert files_in(home) == set()


@pytest.mark.parametrize("kind", ["cut", "gone", "description", "other json"])
def test_an_upload_that_is_damaged_says_so(imports: Imports, work: Work, kind: str) -> None:
    begin(imports)
    wait_for(lambda: work.attempts)
    archive, description = work.attempts[0], imports.home / "uploads" / "pets.json"
    damages: dict[str, Callable[[], Any]] = {
        "cut": lambda: os.truncate(archive, 3),
        "gone": archive.unlink,
        "description": lambda: description.write_bytes(description.read_bytes().replace(b'"size": 32', b'"size": 33')),
        "other json": lambda: write_sealed(description, {"x": 1}),
    }
    damages[kind]()
    server = restarted(imports)
    assert "the uploaded archive is no longer complete. Upload it again." in error_of(server)
    assert files_in(imports.home) == {"pets.json"}
    assert len(work.attempts) == 1


def test_the_message_of_a_failed_import_survives_a_restart_until_it_is_dismissed(imports: Imports, work: Work) -> None:
    work.steps = [DatasetError("It contains no images.", "Put images into it.")]
    begin(imports)
    wait_for(lambda: error_of(imports))
    assert files_in(imports.home) == {"pets.json"}
    server = restarted(imports)
    assert error_of(server) == "It contains no images. Put images into it."
    server.cancel("pets")  # nothing to stop
    assert error_of(server)
    server.dismiss("pets")
    assert files_in(imports.home) == set()
    assert restarted(imports).active() == []


def test_the_message_of_a_failed_import_goes_after_a_day(imports: Imports, work: Work) -> None:
    for name in ("old", "older", "recent"):
        work.steps.append(DatasetError("It contains no images.", ""))
        begin(imports, name)
        wait_for(partial(error_of, imports, name))
    for name in ("old", "older"):
        upload = imports._jobs[name].upload
        assert upload is not None
        imports._jobs[name].upload = upload.change(failed_at=to_iso(time.time() - 25 * 3600))
    assert [each.name for each in restarted(imports).active()] == ["recent"]
    begin(imports, "new")
    assert [each.name for each in imports.active()] == ["recent", "new"]
    wait_for(lambda: len(work.attempts) == 4)
    work.child.finish()


def test_another_upload_replaces_one_that_failed(imports: Imports, work: Work) -> None:
    work.steps = [DatasetError("It contains no images.", "")]
    begin(imports)
    wait_for(lambda: error_of(imports))
    begin(imports)
    wait_for(lambda: len(work.attempts) == 2)
    assert not error_of(imports)
    work.child.finish()
    wait_for(lambda: files_in(imports.home) == set())


def test_a_cancelled_import_is_not_continued(imports: Imports, work: Work) -> None:
    begin(imports)
    wait_for(lambda: work.attempts)
    imports.cancel("pets")
    wait_for(lambda: not imports.active())
    assert work.child.was_terminated
    assert files_in(imports.home) == set()


# Leftovers -----------------------------------------------------------------------------------------------------------


def test_leftovers_go_at_the_start_unless_a_living_process_works_on_them(home: Path) -> None:
    making, raw = home / "datasets" / ".making", home / "downloads" / "MNIST" / "raw"
    other = home / "downloads" / "cifar-10-python.tar.gz.part"
    for path in (making / "gone" / "rows", making / "cifar10" / "rows", raw / "t10k-labels-idx1-ubyte.gz.part", other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(b"complete")
    code = "import sys, time; from pathlib import Path; from trainer.datasets import cache\n"
    code += "with cache.locked(Path(sys.argv[1]), 'cifar10'): print(flush=True); sys.stdin.read()"
    arguments = [sys.executable, "-c", code, str(home)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        maker.stdout.readline()
        Imports(home).resume()
        assert [path.name for path in making.iterdir()] == ["cifar10"]
        assert [path.name for path in raw.iterdir()] == ["t10k-images-idx3-ubyte.gz"]
        assert other.exists()
        maker.communicate()
    Imports(home).resume()
    assert [*making.iterdir()] == []
    assert not other.exists()


def test_a_process_that_is_asked_to_end_is_told_from_one_that_fails(home: Path, tmp_path: Path) -> None:
    (tmp_path / "pets.zip").write_bytes(make_zip())
    children: list[subprocess.Popen[bytes]] = []

    def stop_at_once(child: subprocess.Popen[bytes]) -> None:
        children.append(child)
        child.send_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        list(worker.import_images(home, "pets", tmp_path / "pets.zip", on_start=stop_at_once))
    assert children[0].returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)


# A full disk ---------------------------------------------------------------------------------------------------------


def test_an_import_without_space_waits_and_continues_when_there_is_some(
    imports: Imports, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [8_999_999]
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 0, free[0]))
    work.steps = [DISK_FULL]
    begin(imports)
    wait_for(lambda: (found := imports.find("pets")) and found.waiting)
    found = imports.find("pets")
    assert found is not None
    assert found.error is None
    assert found.waiting == f"{DISK_FULL.message} It continues automatically when there is enough space."
    free[0] += 1
    wait_for(lambda: len(work.attempts) == 2)
    wait_for(lambda: (found := imports.find("pets")) and not found.waiting)
    work.child.finish()
    wait_for(lambda: not imports.active())


def test_an_import_that_waits_can_be_cancelled_and_survives_a_restart(
    imports: Imports, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 0, 8_999_999))
    work.steps = [DISK_FULL, DISK_FULL]
    begin(imports)
    wait_for(lambda: (found := imports.find("pets")) and found.waiting)
    server = restarted(imports)
    wait_for(lambda: (found := server.find("pets")) and found.waiting)
    server.cancel("pets")
    wait_for(lambda: not server.active())
    assert files_in(imports.home) == set()


def test_a_quota_does_not_make_an_import_start_all_the_time(
    imports: Imports, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def wait(job: Any, problem: DiskFull, pause: float) -> None:
        pauses.append(pause)

    monkeypatch.setattr(imports, "_wait_for_space", wait)
    monkeypatch.setattr(datasets, "_POLL_SECONDS", 2.0)
    work.steps = [DiskFull("The disk is full.", "") for _attempt in range(8)]
    begin(imports)
    wait_for(lambda: len(work.attempts) == 9)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    work.child.finish()


@pytest.mark.parametrize("step", ["copyfileobj", "fsync", "description"])
def test_an_upload_to_a_full_disk_is_not_kept(
    imports: Imports, work: Work, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_arguments: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        target = {"copyfileobj": shutil, "fsync": os, "description": uploads}[step]
        patch.setattr(target, {"description": "write_sealed"}.get(step, step), fail)
        with pytest.raises(InsufficientStorage, match="The disk is full, so the upload was not kept"):
            begin(imports)
    assert files_in(imports.home) == set()
    assert imports.active() == []
    begin(imports)
    wait_for(lambda: work.attempts)
    work.child.finish()


def test_an_upload_leaves_the_reserve_free(home: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    imports = Imports(home, reserve=1000)
    imports.resume()
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 0, 1006))
    with pytest.raises(InsufficientStorage):
        begin(imports)
    assert files_in(home) == set()
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**9, 0, 1007))
    begin(imports)
    wait_for(lambda: work.attempts)
    work.child.finish()
    wait_for(lambda: not imports.active())


def send(client: TestClient, **options: Any) -> Any:
    file = {"file": ("pets.zip", os.urandom(2 * 2**20), "application/zip")}
    return client.post("/api/v1/datasets", data={"name": "pets"}, files=file, **options)


def test_a_body_that_does_not_fit_on_the_disk_is_507(
    api: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_options: object) -> None:
        raise FULL

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    answer = send(api)
    assert (answer.status_code, answer.json()["title"]) == (507, "Disk full")
    assert answer.json()["detail"] == "The disk is full, so nothing was kept. Free some space, then send it again."
    file = {"file": ("pets.zip", os.urandom(2 * 2**20), "application/zip")}
    page = api.post("/datasets", data={"name": "pets"}, files=file, headers={"Accept": "text/html"})
    assert page.status_code == 507
    assert "<h1>Disk full</h1>" in page.text
    assert "The disk is full, so nothing was kept." in page.text
    assert caplog.records == []
    assert files_in(home) == set()
    assert api.get("/api/v1/datasets").json()["imports"] == []


def test_a_body_that_the_disk_can_not_take_is_503(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    answer = send(api)
    assert answer.status_code == 503
    assert "Input/output error" in answer.json()["detail"]


@pytest.fixture
def small_disk(home: Path) -> Iterator[TestClient]:
    """A server that keeps all of the disk free."""
    app: FastAPI = create_app(Settings(home=home, reserve_mb=10**9), train=False)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def test_an_upload_that_would_not_leave_the_reserve_is_refused_before_it_is_read(small_disk: TestClient) -> None:
    answer = send(small_disk)
    assert answer.status_code == 507
    assert "MB left; this upload needs 5 MB. Free some space, then upload it again." in answer.json()["detail"]
    assert "needs 5 MB" in send(small_disk, headers={"Accept": "text/html"}).text


def test_an_upload_of_unknown_length_ends_when_the_disk_is_full(
    api: TestClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([10**12])
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12, 0, next(free, 0)))
    monkeypatch.setattr(security, "_LOOK_BYTES", 10**6)

    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="pets.zip"\r\n\r\n'
        for _part in range(8):
            yield os.urandom(2**20)
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = api.post("/api/v1/datasets", content=body(), headers=headers)
    assert answer.status_code == 507
    assert answer.json()["detail"].startswith("The disk is full, so the upload was refused.")
    assert files_in(home) == set()


def test_decoded_images_that_were_written_in_part_are_no_images(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fills the disk may write less than it was given, without an error."""
    from trainer.datasets.importing import import_images

    (tmp_path / "pets.zip").write_bytes(make_zip())
    monkeypatch.setattr(os, "pwrite", lambda _fd, data, _offset: len(data) - 1)
    with pytest.raises(OSError, match="No space left"):
        import_images(home, "pets", tmp_path / "pets.zip", lambda _progress: None, size=64)
    assert not cache.folder_of(home, "pets").exists()


def test_an_import_leaves_the_reserve_free(home: Path, tmp_path: Path) -> None:
    from trainer.datasets.importing import import_images

    (tmp_path / "pets.zip").write_bytes(make_zip())
    with pytest.raises(DiskFull) as caught:
        import_images(home, "pets", tmp_path / "pets.zip", lambda _progress: None, size=64, reserve=10**15)
    assert caught.value.needed == 10**15 + 2 * 20 * 16 * 16


def test_a_migration_without_space_is_one_sentence_and_keeps_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runoff.sqlite3"
    open_index(path)[0].dispose()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0004'")
        connection.commit()
    before = path.read_bytes()
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *values, **named: connect(*values, **named, factory=_OnFullDisk))
    with pytest.raises(IndexUnusable, match=r"can't be used: database or disk is full\. Free some space"):
        open_index(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["runoff.sqlite3"]


class _OnFullDisk(sqlite3.Connection):
    """A connection whose copy does not fit on the disk."""

    def backup(self, target: sqlite3.Connection, **_options: Any) -> None:
        target.execute("CREATE TABLE a_part (of_it)")
        raise sqlite3.OperationalError("database or disk is full")
