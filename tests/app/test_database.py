"""How SQLite behaves: constraints, migration in one transaction, readers beside a writer."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, select

from app.store.database import _WAL_IS_SAFE_FROM, make_engine, migrate, reading, writing
from app.store.queries import RunFilter, conditions_of, order_of
from app.store.tables import Epoch, Run


def test_the_migration_makes_what_the_tables_say(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "db.sqlite3")
    migrate(engine)
    found = inspect(engine)
    for table in SQLModel.metadata.sorted_tables:
        assert {column["name"] for column in found.get_columns(table.name)} == {c.name for c in table.columns}
        assert {index["name"] for index in found.get_indexes(table.name)} == {index.name for index in table.indexes}
    migrate(engine)
    engine.dispose()


def test_rows_of_the_first_schema_are_kept(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "db.sqlite3")
    migrate(engine)
    required: dict[str, Any] = {name: 0 for name, field in Epoch.model_fields.items() if field.is_required()}
    with writing(engine) as session:
        session.add(_run())
        session.flush()
        session.add(Epoch(**{**required, "run_id": "a", "epoch": 1, "ended_at": ""}))
        session.flush()
        for table, added in (
            ("run", ("flops", "defect", "imported", "machines", "hanging_since", "queue_reason")),
            ("epoch", ("flops", "logged_correct")),
        ):
            for column in added:
                session.connection().execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        session.connection().execute(text("UPDATE alembic_version SET version_num = '0001'"))
        session.commit()
    migrate(engine)
    with reading(engine) as session:
        run, epoch = session.get(Run, "a"), session.get(Epoch, ("a", 1))
        assert run is not None
        assert epoch is not None
        assert (run.dataset, run.flops, epoch.flops) == ("digits", None, None)
        assert (run.defect, epoch.logged_correct) == (None, None)
    engine.dispose()


def test_the_index_of_the_list_is_made_anew(tmp_path: Path) -> None:
    """Revision 0003 had it without the version."""
    engine = make_engine(tmp_path / "db.sqlite3")
    migrate(engine)
    columns = 'archived, created_at DESC, id, "group", seed, status'
    with engine.connect() as connection, connection.begin():
        for statement in (
            "DROP INDEX ix_run_list",
            f"CREATE INDEX ix_run_list ON run ({columns})",
            *(
                f"ALTER TABLE run DROP COLUMN {column}"
                for column in ("defect", "imported", "machines", "hanging_since", "queue_reason")
            ),
            "ALTER TABLE epoch DROP COLUMN logged_correct",
            "UPDATE alembic_version SET version_num = '0003'",
        ):
            connection.execute(text(statement))
    migrate(engine)
    with reading(engine) as session:
        found = session.connection().execute(text("SELECT sql FROM sqlite_master WHERE name = 'ix_run_list'")).scalar()
        assert found == f"CREATE INDEX ix_run_list ON run ({columns}, version)"
        columns_read = (getattr(Run, name) for name in ("id", "group", "seed", "status", "created_at", "version"))
        listed = select(*columns_read).where(*conditions_of(RunFilter())).order_by(*order_of("-created_at"))
        compiled = str(listed.compile(compile_kwargs={"literal_binds": True}))
        plan = session.connection().execute(text(f"EXPLAIN QUERY PLAN {compiled}")).all()
        assert [line.detail for line in plan] == ["SEARCH run USING COVERING INDEX ix_run_list (archived=?)"]
    engine.dispose()


def _run() -> Run:
    values: dict[str, Any] = dict.fromkeys(("config_hash", "group", "created_at"), "")
    return Run(id="a", config={}, dataset="digits", model="fc", **values)


def test_a_failed_migration_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(tmp_path / "db.sqlite3")
    from alembic.operations import BatchOperations

    def fail(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(BatchOperations, "create_index", fail)
    with pytest.raises(MemoryError):
        migrate(engine)
    assert inspect(engine).get_table_names() == []
    monkeypatch.undo()
    migrate(engine)
    assert "run" in inspect(engine).get_table_names()
    engine.dispose()


@pytest.mark.parametrize(("free", "expected"), [(0, "memory"), (10**9, "delete")])
def test_on_a_full_disk_the_journal_takes_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: str
) -> None:
    if sqlite3.sqlite_version_info >= _WAL_IS_SAFE_FROM:
        expected = "wal"
    monkeypatch.setattr("app.store.database.shutil.disk_usage", lambda _path: SimpleNamespace(free=free))
    engine = make_engine(tmp_path / "db.sqlite3")
    with reading(engine) as session:
        assert session.connection().execute(text("PRAGMA journal_mode")).scalar() == expected
    engine.dispose()


def test_foreign_keys_and_synchronous_are_on(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "db.sqlite3")
    migrate(engine)
    with reading(engine) as session:
        assert session.connection().execute(text("PRAGMA foreign_keys")).scalar() == 1
        assert session.connection().execute(text("PRAGMA synchronous")).scalar() in (2, 3)
    orphan: dict[str, Any] = {name: 0 for name, field in Epoch.model_fields.items() if field.is_required()}
    with writing(engine) as session:
        session.add(Epoch(**{**orphan, "run_id": "nobody", "ended_at": ""}))
        with pytest.raises(IntegrityError):
            session.flush()
    engine.dispose()


def test_a_read_inside_a_write_sees_the_state_before(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "db.sqlite3")
    migrate(engine)
    with writing(engine) as session:
        session.add(_run())
        session.flush()
        with reading(engine) as other:
            assert other.get(Run, "a") is None
        session.commit()
    with reading(engine) as other:
        assert other.get(Run, "a") is not None
    engine.dispose()
