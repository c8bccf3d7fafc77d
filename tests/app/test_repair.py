"""``runoff check --restore`` restores files from intact copies, keeps what it replaces, and trains nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select
from typer.testing import CliRunner

from app.cli.commands import app
from app.errors import Conflict
from app.runs.indexer import Indexer
from app.runs.repair import repair
from app.store.database import make_engine, migrate, reading, writing
from app.store.tables import Epoch, Run
from tests.app.run_folders import ENVIRONMENT, FAILED, answer, epoch, finish, lines, new_run, say, started, steps
from tests.app.test_damage import WAYS, cut, flip
from trainer.damage import damage_of
from trainer.event_log import line_of, read_log
from trainer.events import Cancelled, Finished
from trainer.run_folder import RunFolder


@pytest.fixture
def index(home: Path) -> Indexer:
    engine = make_engine(home / "runoff.sqlite3")
    migrate(engine)
    return Indexer(engine, home / "runs")


def whole(index: Indexer, **fields: Any) -> RunFolder:
    """A finished run with its manifest, in the index."""
    folder = finish(new_run(index.runs, **fields))
    folder.write_run((folder.read_run() or {}) | {"name": "the best", "tags": ["kept"], "notes": "of 3 tries"})
    index.tick()
    assert damage_of(folder, full=True) == []
    return folder


def row(index: Indexer, run_id: str) -> Run:
    with reading(index.engine) as session:
        return session.exec(select(Run).where(Run.id == run_id)).one()


def epochs(index: Indexer, run_id: str) -> list[dict[str, Any]]:
    with reading(index.engine) as session:
        found = session.exec(select(Epoch).where(Epoch.run_id == run_id)).all()
        return [epoch.model_dump() for epoch in sorted(found, key=lambda epoch: epoch.epoch)]


def facts(index: Indexer, run_id: str) -> dict[str, Any]:
    """What a person sees of a run, without where its log was read to."""
    values = row(index, run_id).model_dump()
    of_reading = {"version", "event_offset", "event_seq", "updated_at", "rate_step", "rate_at"}
    return {name: values[name] for name in values.keys() - of_reading}


@pytest.mark.parametrize("way", WAYS)
def test_a_finished_run_gets_its_log_back_from_the_index(index: Indexer, way: str) -> None:
    folder = whole(index)
    before, epochs_before = facts(index, folder.id), epochs(index, folder.id)
    WAYS[way](folder.events_path)
    damaged = folder.events_path.read_bytes() if folder.events_path.exists() else None
    index.rebuild()
    assert row(index, folder.id).status == "damaged"
    result = repair(index.engine, folder)
    assert result.problems == []
    assert facts(index, folder.id) == before
    assert epochs(index, folder.id) == epochs_before
    assert [line["seq"] for line in lines(folder)] == [*range(1, len(lines(folder)) + 1)]
    if damaged is not None:
        assert damaged in [path.read_bytes() for path in (folder.path / "damaged").iterdir()]
    index.rebuild()
    assert facts(index, folder.id) == before


def test_what_a_newer_version_wrote_is_left_alone(index: Indexer) -> None:
    folder = whole(index)
    event = {**lines(folder)[-1], "type": "promoted", "seq": len(lines(folder)) + 1}
    with folder.events_path.open("ab") as file:
        file.write(line_of({name: value for name, value in event.items() if name != "crc"}, sealed=True))
    before = folder.events_path.read_bytes()
    result = repair(index.engine, folder)
    assert (result.done, folder.events_path.read_bytes() == before) == ([], True)
    assert "does not know" in result.problems[0]


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
    "cut": cut,
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["run.json", "config.json", "environment.json", "manifest.json"])
@pytest.mark.parametrize("reindexed", [False, True])
def test_each_small_file_comes_back(index: Indexer, name: str, damage: str, reindexed: bool) -> None:
    folder = whole(index)
    before, content = facts(index, folder.id), (folder.path / name).read_bytes()
    DAMAGE[damage](folder.path / name)
    if reindexed:
        index.rebuild()
    result = repair(index.engine, folder)
    assert result.problems == []
    assert facts(index, folder.id) == before
    assert any(name in sentence for sentence in result.done)
    if name != "run.json":  # which also has what the index does not need
        assert (folder.path / name).read_bytes() == content


def test_a_file_comes_back_from_another_run_with_the_same_hash(index: Indexer) -> None:
    folder, other = whole(index), whole(index, seed=1)
    flip(folder.labels_path, 130)
    result = repair(index.engine, folder)
    assert result.problems == []
    assert other.id in result.done[0]
    assert folder.labels_path.read_bytes() == other.labels_path.read_bytes()


def test_everything_comes_back_from_a_backup(index: Indexer, tmp_path: Path) -> None:
    folder = whole(index)
    shutil.copytree(index.runs.parent, tmp_path / "backup")
    before, files = facts(index, folder.id), {p: p.read_bytes() for p in folder.path.rglob("*.*") if p.is_file()}
    for path in files:
        if path.name != "log.txt":
            flip(path, path.stat().st_size // 2)
    index.rebuild()
    answer = CliRunner().invoke(app, ["check", "--restore", folder.id, "--backup", str(tmp_path / "backup")])
    assert answer.exit_code == 0, answer.output
    assert facts(index, folder.id) == before
    others = {path: content for path, content in files.items() if path.name != "run.json"}  # that comes from the index
    assert all(path.read_bytes() == content for path, content in others.items())


def test_without_an_index_only_the_labels_are_lost(index: Indexer) -> None:
    folder = whole(index)
    cut(folder.path / "run.json")
    with writing(index.engine) as session:
        session.delete(session.get(Epoch, (folder.id, 1)))
        session.commit()
    index.engine.dispose()
    (index.runs.parent / "runoff.sqlite3").unlink()
    answer = CliRunner().invoke(app, ["check", "--restore", folder.id])
    assert answer.exit_code == 0, answer.output
    assert "Its name, tags and notes are lost." in answer.output
    restored = row(index, folder.id)
    assert (restored.status, restored.epochs_done, restored.name) == ("finished", 3, "")


def test_a_run_without_an_end_waits_for_a_person(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), steps(1), epoch(1), steps(2), epoch(2)])
    index.tick()
    flip(folder.events_path, len(folder.events_path.read_bytes().splitlines(keepends=True)[0]) + 30)
    result = repair(index.engine, folder)
    assert result.problems == []
    restored = row(index, folder.id)
    assert (restored.status, restored.epochs_done) == ("cancelled", 2)
    index.rebuild()
    assert row(index, folder.id).status == "cancelled"


def test_an_epoch_that_no_copy_has_stays_named(index: Indexer) -> None:
    folder = whole(index)
    second = folder.events_path.read_bytes().index(b'"epoch":2,"step":20')
    flip(folder.events_path, second)
    index.engine.dispose()
    Path(index.engine.url.database or "").write_bytes(b"")
    migrate(index.engine)
    index.tick()
    before = folder.events_path.read_bytes()
    result = repair(index.engine, folder)
    assert result.problems != []
    assert row(index, folder.id).status == "damaged"
    assert folder.events_path.read_bytes() == before
    assert read_log(folder.events_path).epochs == [1, 3]


def test_a_running_run_is_left_alone(index: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole(index)
    monkeypatch.setattr(RunFolder, "is_alive", lambda _self: True)
    with pytest.raises(Conflict, match="running"):
        repair(index.engine, folder)


def test_an_unknown_run_is_an_error_at_the_option(home: Path) -> None:
    answer = CliRunner().invoke(app, ["check", "--restore", "nothere"])
    assert (answer.exit_code, "There is no run nothere" in answer.output) == (2, True)


def test_a_copy_of_the_folder_beside_it_is_used(index: Indexer) -> None:
    folder = whole(index)
    shutil.copytree(folder.path, index.runs / f"{folder.id}.bak")
    log = folder.events_path.read_bytes()
    flip(folder.events_path, len(log) // 2)
    flip(folder.predictions_path(2), 200)
    result = repair(index.engine, folder)
    assert result.problems == []
    assert folder.events_path.read_bytes() == log
    assert (
        folder.predictions_path(2).read_bytes()
        == RunFolder(index.runs / f"{folder.id}.bak").predictions_path(2).read_bytes()
    )


def test_an_older_backup_takes_nothing_away(index: Indexer, tmp_path: Path) -> None:
    """Of a run that was cancelled after an epoch, backed up, resumed and finished."""
    folder = new_run(index.runs)
    say(folder, [started(), steps(1), epoch(1), Cancelled(1)])
    shutil.copytree(index.runs.parent, tmp_path / "backup")
    shutil.copytree(folder.path, index.runs / f"{folder.id}.bak")
    say(folder, [started(2), steps(2), epoch(2), steps(3), epoch(3)], attempt=2)
    folder.write_manifest()
    say(folder, [Finished(3)], attempt=2)
    folder.write_run((folder.read_run() or {}) | {"name": "renamed later"})
    index.tick()
    before = facts(index, folder.id)
    flip(folder.events_path, folder.events_path.read_bytes().index(b'"step":21'))
    flip(folder.path / "run.json", 60)
    result = repair(index.engine, folder, [tmp_path / "backup"])
    assert result.problems == []
    assert facts(index, folder.id) == before
    assert [line["epoch"] for line in lines(folder) if line["type"] == "epoch"] == [1, 2, 3]


def test_a_sibling_that_is_another_run_gives_nothing(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), steps(1), epoch(1), FAILED])
    sibling = RunFolder(Path(shutil.copytree(folder.path, index.runs / f"{folder.id}-2")))
    sibling.write_run((sibling.read_run() or {}) | {"id": sibling.id, "name": "another"})
    say(sibling, [started(2), epoch(2), epoch(3)], attempt=2)
    sibling.write_manifest()
    say(sibling, [Finished(3)], attempt=2)
    index.tick()
    flip(folder.path / "run.json", 40)
    result = repair(index.engine, folder)
    assert result.problems == []
    found = row(index, folder.id)
    assert (found.status, found.epochs_done, found.name, found.imported) == ("failed", 1, "a run", False)
    assert not folder.manifest_path.exists()


def test_a_run_that_was_cancelled_before_it_began_is_not_queued(index: Indexer) -> None:
    folder = new_run(index.runs)
    folder.write_environment(ENVIRONMENT)
    say(folder, [Cancelled(0)])
    index.tick()
    folder.events_path.write_bytes(b"")
    index.rebuild()
    assert row(index, folder.id).status == "damaged"
    result = repair(index.engine, folder)
    assert (result.problems, row(index, folder.id).status) == ([], "cancelled")


@pytest.mark.parametrize("reindexed", [False, True])
def test_an_imported_run_stays_imported(index: Indexer, tmp_path: Path, reindexed: bool) -> None:
    other = new_run(tmp_path / "other" / "runs")
    say(other, [started(), epoch(1)])
    folder = RunFolder(Path(shutil.copytree(other.path, index.runs / other.id)))
    index.rebuild()
    assert row(index, folder.id).imported
    flip(folder.path / "run.json", 40)
    if reindexed:
        index.rebuild()
    assert repair(index.engine, folder).problems == []
    assert (row(index, folder.id).imported, row(index, folder.id).status) == (True, "cancelled")
    assert folder.is_imported()


def test_a_full_disk_takes_nothing_away(index: Indexer, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole(index)
    flip(folder.events_path, 100)
    before = folder.events_path.read_bytes()

    def refuse(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("app.runs.repair.write_bytes", refuse)
        with pytest.raises(OSError, match="No space"):
            repair(index.engine, folder)
    assert folder.events_path.read_bytes() == before
    assert repair(index.engine, folder).problems == []


def test_a_defect_is_not_repaired_away(index: Indexer) -> None:
    folder = new_run(index.runs)
    say(folder, [started(), steps(1), epoch(1, correct=6)])
    answer(folder, 1, correct=4)
    folder.write_manifest()
    say(folder, [Finished(1)])
    index.tick()
    assert row(index, folder.id).defect is not None
    flip(folder.events_path, folder.events_path.read_bytes().index(b'"epoch":1,"step":10'))
    assert repair(index.engine, folder).problems == []
    assert row(index, folder.id).defect is not None
