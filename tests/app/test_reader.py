"""Many run folders are read in a separate process, and the server shows the progress."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import select
from starlette.testclient import TestClient

from app.errors import Problem
from app.runs.indexer import Indexer
from app.runs.reader import Reader
from app.schemas import IndexProgress
from app.state import Runoff
from app.store.database import reading
from app.store.tables import Run
from tests.app.run_folders import finish, new_run
from trainer.interpreter import python_command


def test_many_new_folders_are_read_in_a_separate_process(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.indexer._MANY", 3)
    ids = {finish(new_run(tmp_path / "runs", seed=seed)).id for seed in range(5)}
    reader = Reader(tmp_path / "db.sqlite3", tmp_path / "runs")
    index = Indexer(engine, tmp_path / "runs", reader=reader)
    told: list[IndexProgress] = []
    monkeypatch.setattr(index, "_report", told.append)
    assert not index.discover()  # the process reads them, not this one
    wait_until(lambda: run_ids(engine) == ids)
    wait_until(lambda: bool(told))
    assert told == [IndexProgress(done=5, total=5)]
    reader.end()


def test_few_new_folders_are_read_at_once(engine: Engine, tmp_path: Path) -> None:
    folder = finish(new_run(tmp_path / "runs"))
    assert Indexer(engine, tmp_path / "runs", reader=Reader(tmp_path / "db.sqlite3", tmp_path / "runs")).discover()
    assert run_ids(engine) == {folder.id}


def test_a_rebuild_by_the_process_says_how_many(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.indexer._MANY", 1)
    ids = {finish(new_run(tmp_path / "runs", seed=seed)).id for seed in range(2)}
    index = Indexer(engine, tmp_path / "runs", reader=Reader(tmp_path / "db.sqlite3", tmp_path / "runs"))
    assert index.rebuild() == 2
    assert index.progress is None
    assert run_ids(engine) == ids


def test_a_rebuild_that_is_interrupted_is_refused(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.indexer._MANY", 0)
    finish(new_run(tmp_path / "runs"))
    index = Indexer(engine, tmp_path / "runs", reader=Reader(tmp_path / "db.sqlite3", tmp_path / "runs"))
    index.end()
    with pytest.raises(Problem, match="interrupted") as problem:
        index.rebuild()
    assert problem.value.status == 503


def test_the_process_ends_with_its_server(engine: Engine, tmp_path: Path) -> None:
    folder = new_run(tmp_path / "runs")
    (folder.path / "run.json").unlink()
    os.mkfifo(folder.path / "run.json")  # reading it waits forever
    command = python_command("app.runs.read_many", "--all", str(tmp_path / "db.sqlite3"), str(tmp_path / "runs"))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == 1


def test_folders_that_are_not_ready_do_not_delay_the_others(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.indexer._BATCH", 2)
    monkeypatch.setattr("app.runs.indexer._DISCOVER_SECONDS", 0.0)  # one batch a tick
    runs = tmp_path / "runs"
    folders = [finish(new_run(runs, seed=seed)) for seed in range(7)]
    first = sorted(folder.id for folder in folders)[:5]
    monkeypatch.setattr("app.runs.indexer.is_unready", lambda folder: folder.id in first)
    index = Indexer(engine, runs)
    for _tick in range(4):
        index.discover()
    assert run_ids(engine) == {folder.id for folder in folders} - set(first)


def run_ids(engine: Engine) -> set[str]:
    with reading(engine) as session:
        return set(session.exec(select(Run.id)).all())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_pages_and_api_say_how_far_the_index_is(api: TestClient, state: Runoff) -> None:
    assert api.get("/api/v1/system").json()["indexing"] is None
    state.indexer.progress = IndexProgress(done=1_200, total=10_000)
    assert api.get("/api/v1/system").json()["indexing"] == {"done": 1_200, "total": 10_000}
    page = api.get("/runs", headers={"Accept": "text/html"}).text
    assert "1,200 of 10,000. Until all are read, lists may be incomplete." in page


def test_folders_without_a_run_are_read_once(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.runs.indexer._MANY", 1)
    monkeypatch.setattr("app.runs.indexer.COPYING_SECONDS", 0.0)
    runs = tmp_path / "runs"
    for number in range(3):
        folder = new_run(runs, seed=number)
        (folder.path / "run.json").write_text("{")  # damaged, and so old that nothing will be added to it
        os.utime(folder.path, (0, 0))
        os.rename(folder.path / "run.json", folder.path / "run.json.lost")
        os.utime(folder.path, (0, 0))
    os.utime(runs, (time.time() - 60,) * 2)
    begun: list[bool] = []

    class Counted(Reader):
        def begin(self, *arguments: Any, **options: Any) -> None:
            begun.append(True)
            super().begin(*arguments, **options)

    index = Indexer(engine, runs, reader=Counted(tmp_path / "db.sqlite3", runs))
    index.discover()
    wait_until(lambda: index._seen_mtime > 0)
    for _tick in range(3):
        index.discover()
    assert begun == [True]
