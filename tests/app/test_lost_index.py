"""The index is rebuildable: one that is damaged, removed or of another version is set aside and made again."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app.cli.commands import app
from app.main import create_app
from app.runs.indexer import Indexer
from app.settings import Settings
from app.store.database import SCHEMA, IndexUnusable, make_engine, migrate, open_index
from tests.app.run_folders import finish, new_run


def made(home: Path, count: int = 2) -> Path:
    """A home with finished runs and its index."""
    for seed in range(count):
        finish(new_run(home / "runs", seed=seed))
    engine = make_engine(home / "runoff.sqlite3")
    migrate(engine)
    Indexer(engine, home / "runs").rebuild()
    engine.dispose()
    return home / "runoff.sqlite3"


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def four_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for page in range(1, 5):
        data[page * 4096 : page * 4096 + 4096] = b"\xa5" * 4096
    path.write_bytes(data)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_another_program(path: Path) -> None:
    path.unlink()
    execute(path, "CREATE TABLE songs (name TEXT)")


WAYS: dict[str, Callable[[Path], object]] = {
    "half": half,
    "rubbish": lambda path: path.write_bytes(b"rubbish" * 1000),
    "a text": lambda path: path.write_text("this is no database"),
    "four pages": four_pages,
    "a folder": folder,
    "no version row": lambda path: execute(path, "DELETE FROM alembic_version"),
    "no version table": lambda path: execute(path, "DROP TABLE alembic_version"),
    "no table of runs": lambda path: execute(path, "DROP TABLE run"),
    "a column less": lambda path: execute(path, "ALTER TABLE epoch DROP COLUMN save_seconds"),
    "of another program": of_another_program,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_server_makes_a_damaged_index_again(home: Path, way: str) -> None:
    path = made(home)
    WAYS[way](path)
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as client:
        client.app.state.runoff.indexer.tick()  # type: ignore[attr-defined]
        assert client.get("/api/v1/runs").json()["total"] == 2
        assert client.get("/runs").status_code == 200
    assert len(list(home.glob("runoff.sqlite3.damaged-*"))) == 1


@pytest.mark.parametrize("way", WAYS)
def test_reindex_makes_a_damaged_index_again(home: Path, way: str) -> None:
    path = made(home)
    WAYS[way](path)
    result = CliRunner().invoke(app, ["reindex"])
    assert (result.exit_code, "2 runs indexed." in result.output) == (0, True), result.output
    assert "The index was damaged" in result.output


@pytest.mark.parametrize("way", ["half", "rubbish", "four pages", "no table of runs", "deleted", "emptied", "replaced"])
def test_pages_come_back_while_the_server_works(home: Path, way: str) -> None:
    path = made(home)
    other = made(home.parent / "other", 1)
    site_app = create_app(Settings(home=home), train=False)
    with TestClient(site_app, base_url="http://localhost") as client:
        assert client.get("/api/v1/runs").json()["total"] == 2
        match way:
            case "deleted":
                path.unlink()
            case "emptied":
                path.write_bytes(b"")
            case "replaced":
                other.replace(path)
            case _:
                WAYS[way](path)
        answers = {client.get(address).status_code for address in ("/api/v1/runs", "/runs", "/compare")}
        assert answers <= {200, 503}
        site_app.state.runoff.indexer.tick()
        assert client.get("/api/v1/runs").json()["total"] == 2
        assert client.get("/runs").status_code == 200


def test_a_damaged_index_is_a_sentence_until_it_is_there_again(home: Path) -> None:
    path = made(home)
    site_app = create_app(Settings(home=home), train=False)
    with TestClient(site_app, base_url="http://localhost") as client:
        execute(path, "DROP TABLE run")
        answer = client.get("/api/v1/runs")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "made again from the run folders" in answer.json()["detail"]


def test_reindex_of_a_running_server_mends_too(home: Path) -> None:
    path = made(home)
    with TestClient(create_app(Settings(home=home), train=False), base_url="http://localhost") as client:
        path.write_bytes(b"rubbish" * 1000)
        answer = client.post("/api/v1/reindex")
        assert (answer.status_code, answer.json()) == (200, {"runs": 2})


def test_a_newer_index_is_refused_in_one_sentence_and_replaced_by_reindex(home: Path) -> None:
    path = made(home)
    execute(path, "UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(IndexUnusable, match="newer version"):
        open_index(path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "app.cli", "serve", "--port", port]
    served = subprocess.run(
        command, env={"RUNOFF_HOME": str(home)}, capture_output=True, text=True, timeout=60, check=False
    )
    assert (served.returncode, served.stdout) == (1, "")
    assert "newer version of Runoff" in served.stderr
    assert len(served.stderr.splitlines()) == 1
    assert path.read_bytes() == before
    assert CliRunner().invoke(app, ["reindex"]).exit_code == 0
    [kept] = home.glob("runoff.sqlite3.damaged-*")
    assert kept.read_bytes() == before


def test_a_copy_is_made_before_a_migration(home: Path) -> None:
    path = made(home)
    execute(
        path,
        "ALTER TABLE run DROP COLUMN imported",
        "ALTER TABLE run DROP COLUMN machines",
        "ALTER TABLE run DROP COLUMN hanging_since",
        "ALTER TABLE run DROP COLUMN queue_reason",
        "UPDATE alembic_version SET version_num = '0004'",
    )
    engine, told = open_index(path)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == SCHEMA
    with closing(sqlite3.connect(home / f"runoff.sqlite3.before-{SCHEMA}")) as copy:
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0004",)
        assert copy.execute("SELECT count(*) FROM run").fetchone() == (2,)
    assert told == ""


def test_a_lock_of_another_program_is_no_damage(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(home)
    monkeypatch.setattr("app.store.database._OPEN_SECONDS", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(IndexUnusable, match="locked"):
            open_index(path)
    assert not list(home.glob("*.damaged-*"))


def test_an_index_that_another_program_holds_is_a_sentence_until_it_is_free(
    home: Path, api: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.store.database.BUSY_SECONDS", 0.05)
    run = {"dataset": "digits", "model": "fc"}
    with closing(sqlite3.connect(home / "runoff.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for answer in (api.get("/api/v1/runs"), api.get("/runs"), api.post("/api/v1/runs", json=run)):
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
            assert "Another program has locked the index. Try again in a few seconds." in answer.text
        assert list((home / "runs").iterdir()) == []
    assert api.post("/api/v1/runs", json=run).status_code == 201
    assert api.get("/api/v1/runs").json()["total"] == 1
