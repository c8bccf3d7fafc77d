"""``runoff check`` names every file that does not hold what was written to it, and changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from app.cli.commands import app
from app.runs import check as check_module
from app.runs.indexer import Indexer
from app.store.database import make_engine, migrate
from tests.app.run_folders import epoch, finish, new_run, say, started
from tests.app.test_damage import flip
from trainer.run_folder import RunFolder


@pytest.fixture
def folder(home: Path, site_app: Any) -> RunFolder:
    """A finished run with its manifest."""
    return finish(new_run(home / "runs"))


def check(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *arguments])
    return result.exit_code, result.output


def test_a_whole_home_passes(folder: RunFolder) -> None:
    code, text = check("--full")
    assert (code, "0 damaged" in text) == (0, True)


def test_one_bit_of_each_file_is_found(folder: RunFolder) -> None:
    chance = random.Random(1)
    for path in sorted(path for path in folder.path.rglob("*") if path.is_file()):
        if path.name in ("log.txt", "lock"):
            continue
        whole = path.read_bytes()
        flip(path, chance.randrange(len(whole)), 1)
        damaged = path.read_bytes()
        code, text = check("--full", folder.id)
        assert (code, path.name in text) == (1, True), (path.name, text)
        assert path.read_bytes() == damaged
        path.write_bytes(whole)
    assert check("--full")[0] == 0


def test_sizes_are_compared_without_full(folder: RunFolder) -> None:
    path = folder.predictions_path(2)
    path.write_bytes(path.read_bytes()[:-1])
    code, text = check()
    assert code == 1
    assert f"{folder.id}: predictions/{path.name} has another size" in text


def test_a_damaged_index_is_named(folder: RunFolder, home: Path) -> None:
    (home / "runoff.sqlite3").write_bytes(b"not a database" * 100)
    code, text = check()
    assert code == 1
    assert "runoff.sqlite3: SQLite says" in text


def test_an_unknown_run_is_named(folder: RunFolder) -> None:
    code, text = check("nothere")
    assert (code, "There is no such run folder" in text) == (1, True)


def test_a_backup_without_restore_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    code, text = check("--backup", str(tmp_path), folder.id)
    assert code == 2
    assert "used only with --restore" in " ".join(text.split())


def test_a_changed_row_of_the_index_is_named(folder: RunFolder, home: Path) -> None:
    """SQLite itself finds no fault in a value that was changed."""
    indexer = Indexer(make_engine(home / "runoff.sqlite3"), home / "runs")
    migrate(indexer.engine)
    indexer.rebuild()
    assert check("--full")[0] == 0
    for change in (
        "UPDATE run SET test_accuracy = test_accuracy + 0.01",
        "UPDATE run SET status = 'failed'",
        "UPDATE epoch SET test_loss = 0.1 WHERE epoch = 2",
        "DELETE FROM epoch WHERE epoch = 2",
        "UPDATE run SET config = replace(config, '\"epochs\": 3', '\"epochs\": 4')",
    ):
        with indexer.engine.connect() as connection, connection.begin():
            connection.execute(text(change))
        code, answer = check("--full")
        assert (code, folder.id in answer, "runoff reindex" in answer) == (1, True, True), (change, answer)
        indexer.rebuild()
        assert check("--full")[0] == 0


def test_rows_without_folders_are_named(folder: RunFolder, home: Path) -> None:
    indexer = Indexer(make_engine(home / "runoff.sqlite3"), home / "runs")
    migrate(indexer.engine)
    indexer.rebuild()
    folder.path.rename(home / "runs" / ".away")
    code, answer = check()
    assert (code, f"a row for run {folder.id}, which has no folder" in answer) == (1, True)


def test_a_damaged_id_of_the_home_is_named(folder: RunFolder, home: Path) -> None:
    flip(home / "home.json", 12)
    code, answer = check()
    assert (code, "home.json" in answer) == (1, True)


@pytest.mark.parametrize("name", ["test_total", "alembic_version", "ix_run_status", "SQLite format"])
def test_a_damaged_schema_is_named_and_reindex_makes_a_new_index(folder: RunFolder, home: Path, name: str) -> None:
    engine = make_engine(home / "runoff.sqlite3")
    migrate(engine)
    Indexer(engine, home / "runs").rebuild()
    whole = (home / "runoff.sqlite3").read_bytes()
    flip(home / "runoff.sqlite3", whole.index(name.encode()), 7)
    damaged = (home / "runoff.sqlite3").read_bytes()
    assert check("--full")[0] == 1
    result = CliRunner().invoke(app, ["reindex"])
    assert (result.exit_code, "The index was damaged" in result.output) == (0, True)
    [kept] = home.glob("runoff.sqlite3.damaged-*")
    assert (kept.read_bytes(), str(kept) in result.output.replace("\n", "")) == (damaged, True)
    assert check("--full")[0] == 0


def test_what_cannot_be_read_is_named_and_the_others_are_checked(
    folder: RunFolder, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = finish(new_run(home / "runs", seed=1))
    flip(other.config_path, 40)
    from trainer.damage import damage_of as real

    def damage_of(one: RunFolder, *arguments: Any, **options: Any) -> list[str]:
        if one.id == folder.id:
            raise PermissionError(13, "Permission denied", str(one.config_path))
        return real(one, *arguments, **options)

    monkeypatch.setattr(check_module, "damage_of", damage_of)
    code, answer = check()
    assert code == 1
    assert f"{folder.id}: It can't be read: Permission denied (config.json)." in answer
    assert f"{other.id}: config.json" in answer


def test_lines_that_the_index_knows_are_missed(folder: RunFolder, home: Path) -> None:
    indexer = Indexer(make_engine(home / "runoff.sqlite3"), home / "runs")
    migrate(indexer.engine)
    other = new_run(home / "runs", seed=2)
    say(other, [started(), epoch(1), epoch(2)])
    indexer.rebuild()
    lines = other.events_path.read_bytes().splitlines(keepends=True)
    other.events_path.write_bytes(b"".join(lines[:-1]))
    code, answer = check()
    assert (code, f"{other.id}: events.jsonl has lost lines" in answer) == (1, True)
    assert "can be restored" in answer


def test_a_check_writes_nothing(folder: RunFolder, home: Path) -> None:
    for path in (home / "home.json", home / ".home.json"):
        path.unlink()
    before = sorted(home.rglob("*"))
    assert check("--full")[0] == 0
    assert sorted(home.rglob("*")) == before


def test_a_home_with_an_odd_name(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a#b?c%20d"
    engine = make_engine(odd / "runoff.sqlite3")
    migrate(engine)
    engine.dispose()
    monkeypatch.setenv("RUNOFF_HOME", str(odd))
    assert check("--full")[0] == 0
