"""Folders that are copied into ``runs`` beside a live server: they are shown, and nothing of them is started."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from app.runs import copying, lifecycle
from app.runs.indexer import Indexer
from app.store.database import make_engine, migrate, reading, writing
from app.store.tables import Run
from tests.app.run_folders import ENVIRONMENT, epoch, finish, new_run, say, started, steps
from tests.app.test_damage import flip
from trainer.events import Cancelled
from trainer.files import read_json, write_json, write_sealed
from trainer.home import home_id, id_paths
from trainer.run_folder import RunFolder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Indexer:
    """An indexer that takes a copy as complete at once."""
    monkeypatch.setattr(copying, "COPYING_SECONDS", 0)
    return live(tmp_path / "home")


def live(home: Path) -> Indexer:
    engine = make_engine(home / "runoff.sqlite3")
    migrate(engine)
    (home / "runs").mkdir(exist_ok=True)
    home_id(home)
    return Indexer(engine, home / "runs")


def rows(index: Indexer) -> dict[str, Run]:
    with reading(index.engine) as session:
        return {run.id: run for run in session.exec(select(Run)).all()}


def look_at_all(index: Indexer) -> None:
    index._look_at_all_at = 0
    index._seen_mtime = 0
    index.tick()


def unfinished(runs: Path, epochs: int = 1) -> RunFolder:
    folder = new_run(runs)
    say(folder, [started(), *(event for n in range(1, epochs + 1) for event in (steps(n), epoch(n)))])
    return folder


def copy_into(index: Indexer, folder: RunFolder, name: str | None = None) -> RunFolder:
    return RunFolder(Path(shutil.copytree(folder.path, index.runs / (name or folder.id))))


@pytest.mark.parametrize("has_begun", [True, False])
def test_an_unfinished_run_of_another_home_is_not_started(index: Indexer, tmp_path: Path, has_begun: bool) -> None:
    other = tmp_path / "other" / "runs"
    copy = copy_into(index, unfinished(other) if has_begun else new_run(other))
    for _look in range(3):
        look_at_all(index)
        run = rows(index)[copy.id]
        assert (run.status, run.imported) == ("failed", True)
        assert "was copied here before it had ended" in (run.error or {})["message"]
    index.rebuild()
    assert rows(index)[copy.id].status == "failed"


def test_a_finished_run_of_another_home_is_shown_as_it_is(index: Indexer, tmp_path: Path) -> None:
    copy = copy_into(index, finish(new_run(tmp_path / "other" / "runs")))
    look_at_all(index)
    run = rows(index)[copy.id]
    assert (run.status, run.imported, run.epochs_done, run.error) == ("finished", True, 3, None)


def test_a_copy_under_another_name_is_not_started(index: Indexer) -> None:
    folder = unfinished(index.runs)
    copy_into(index, folder, f"{folder.id}.bak")
    look_at_all(index)
    found = rows(index)
    assert (found[folder.id].status, found[folder.id].imported) == ("running", False)
    assert (found[f"{folder.id}.bak"].status, found[f"{folder.id}.bak"].imported) == ("failed", True)


def test_a_person_makes_it_a_run_of_this_home(index: Indexer, tmp_path: Path) -> None:
    copy = copy_into(index, unfinished(tmp_path / "other" / "runs"), "renamed")
    look_at_all(index)
    with writing(index.engine) as session:
        run = session.get(Run, copy.id)
        assert run is not None
        lifecycle.resume(session, copy, run)
        session.commit()
    assert (rows(index)["renamed"].status, rows(index)["renamed"].imported) == ("queued", False)
    assert not copy.is_imported()
    index.rebuild()
    assert (rows(index)["renamed"].status, rows(index)["renamed"].imported) == ("queued", False)


def test_a_process_that_ended_beside_an_imported_run_starts_nothing(index: Indexer, tmp_path: Path) -> None:
    copy = copy_into(index, unfinished(tmp_path / "other" / "runs"))
    look_at_all(index)
    with writing(index.engine) as session:
        run = session.get(Run, copy.id)
        assert run is not None
        run.status = "running"
        session.add(run)
        session.flush()
        lifecycle.end_vanished_attempt(session, copy, run)
        session.commit()
    assert rows(index)[copy.id].status == "failed"


def test_a_slow_copy_is_waited_for(tmp_path: Path) -> None:
    """Of a run of this home, too: half of its log looks like a run whose process ended."""
    index = live(tmp_path / "home")
    whole = finish(new_run(tmp_path / "home" / "runs"))
    away = Path(shutil.move(whole.path, tmp_path / "away"))
    backdate(away)
    target = RunFolder(index.runs / whole.id)
    target.path.mkdir()
    log = (away / "events.jsonl").read_bytes()
    for name in ("config.json", "run.json", "environment.json"):
        shutil.copy(away / name, target.path / name)
    for part in range(1, 4):
        target.events_path.write_bytes(log[: len(log) * part // 3])
        look_at_all(index)
        assert rows(index) == {}
    shutil.copytree(away / "predictions", target.predictions)
    assert copying.is_unready(target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "COPYING_SECONDS", 0)
        look_at_all(index)
    assert rows(index)[whole.id].status == "finished"


def backdate(folder: Path) -> None:
    """Make a run an hour older than the files that a copy of it will have."""
    run = read_json(folder / "run.json") or {}
    write_sealed(folder / "run.json", run | {"created_at": run["created_at"].replace("2026-", "2025-")})


def test_a_copy_that_grows_after_it_was_found_is_read_again(index: Indexer, tmp_path: Path) -> None:
    source = finish(new_run(tmp_path / "other" / "runs"))
    log = source.events_path.read_bytes()
    source.events_path.write_bytes(log[: len(log) // 2])
    copy = copy_into(index, source)
    look_at_all(index)
    assert rows(index)[copy.id].status in ("failed", "damaged")
    copy.events_path.write_bytes(log)
    look_at_all(index)
    assert rows(index)[copy.id].status == "finished"


FOREIGN: dict[str, dict[str, Any]] = {
    "a newer schema": {"schema": 99},
    "an unknown field": {"teacher": "vgg"},
}


@pytest.mark.parametrize("change", FOREIGN)
def test_what_does_not_fit_is_damaged_alone(index: Indexer, tmp_path: Path, change: str) -> None:
    own = finish(new_run(index.runs))
    source = new_run(tmp_path / "other" / "runs")
    write_sealed(source.config_path, (read_json(source.config_path) or {}) | FOREIGN[change])
    copy = copy_into(index, source)
    look_at_all(index)
    assert {run_id: run.status for run_id, run in rows(index).items()} == {own.id: "finished", copy.id: "damaged"}


def test_folders_from_before_homes_had_an_id_belong_here(index: Indexer) -> None:
    folder = unfinished(index.runs)
    record = {name: value for name, value in (folder.read_run() or {}).items() if name != "home"}
    write_json(folder.path / "run.json", record)
    index.tick()
    assert (rows(index)[folder.id].status, rows(index)[folder.id].imported) == ("running", False)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("is_damaged", [True, False])
def test_the_id_of_a_home_survives_the_loss_of_one_copy(tmp_path: Path, lost: int, is_damaged: bool) -> None:
    known = home_id(tmp_path)
    path = id_paths(tmp_path)[lost]
    if is_damaged:
        flip(path, path.read_bytes().index(known.encode()))
    else:
        path.unlink()
    assert home_id(tmp_path) == known
    assert [json.loads(path.read_bytes())["id"] for path in id_paths(tmp_path)] == [known, known]


def test_two_homes_have_different_ids(tmp_path: Path) -> None:
    assert home_id(tmp_path / "a") != home_id(tmp_path / "b")


def test_an_attempt_that_was_cancelled_before_it_started_counts_after_a_reindex(index: Indexer) -> None:
    folder = new_run(index.runs)
    index.tick()
    with writing(index.engine) as session:
        run = session.get(Run, folder.id)
        assert run is not None
        lifecycle.begin_attempt(session, folder, run, "cpu")
        session.commit()
    folder.write_environment(ENVIRONMENT)
    say(folder, [Cancelled(0)])
    index.tick()
    assert (rows(index)[folder.id].status, rows(index)[folder.id].attempt) == ("cancelled", 1)
    index.rebuild()
    assert (rows(index)[folder.id].status, rows(index)[folder.id].attempt) == ("cancelled", 1)


def test_the_machines_of_the_attempts_are_kept(index: Indexer) -> None:
    folder = new_run(index.runs)
    kinds = ["AMD EPYC, AVX2, PyTorch 2.14.1", "AMD EPYC, AVX512, PyTorch 2.14.1"]
    for attempt, kind in enumerate([kinds[0], kinds[0], kinds[1]], start=1):
        say(folder, [started()], attempt=attempt, machine=kind)
    index.tick()
    assert rows(index)[folder.id].machines == kinds


def test_a_copied_lock_does_not_make_a_run_alive(index: Indexer, tmp_path: Path) -> None:
    source = unfinished(tmp_path / "other" / "runs")
    with source.lock_path.open("wb"):
        copy = copy_into(index, source)
    os.utime(copy.lock_path)
    look_at_all(index)
    assert rows(index)[copy.id].status == "failed"


def test_the_runs_know_the_id_of_a_home_that_lost_both_copies(index: Indexer) -> None:
    home = index.runs.parent
    known = home_id(home)
    folders = [unfinished(index.runs) for _run in range(3)]
    for path in id_paths(home):
        path.write_text("{")
    assert home_id(home) == known
    assert not any(folder.is_imported() for folder in folders)
