"""``runoff check`` names every file that does not hold what was written to it, and changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli.commands import app
from tests.app.run_folders import finish, new_run
from tests.app.test_damage import flip
from trainer.run_folder import RunFolder


@pytest.fixture
def folder(home: Path, site_app: Any) -> RunFolder:
    """A finished run with its manifest."""
    folder = finish(new_run(home / "runs"))
    log = folder.events_path.read_bytes().splitlines(keepends=True)
    folder.events_path.write_bytes(b"".join(log[:-1]))
    folder.write_manifest()
    folder.events_path.write_bytes(b"".join(log))
    return folder


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
