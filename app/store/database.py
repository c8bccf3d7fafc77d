"""The SQLite engine: how connections behave, and the migration of the schema at start."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlmodel import Session

SCHEMA = "0004"  # the newest revision in app/store/migrations/versions
_WAL_IS_SAFE_FROM = (3, 51, 3)  # older versions can corrupt a database in WAL mode


def make_engine(path: Path) -> Engine:
    """An engine on the file at ``path``; see ``reading`` and ``writing`` for how its sessions behave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": 30, "check_same_thread": False},
        poolclass=NullPool,  # a connection costs less than a request that waits for one
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin or commit by itself
        wal = sqlite3.sqlite_version_info >= _WAL_IS_SAFE_FROM
        for pragma in (
            "foreign_keys = ON",
            f"journal_mode = {'WAL' if wal else 'DELETE'}",
            f"synchronous = {'FULL' if wal else 'EXTRA'}",
            "busy_timeout = 30000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        raw = connection.connection.dbapi_connection
        if raw.in_transaction:  # a commit that failed leaves its transaction open
            raw.rollback()
        mode = connection.get_execution_options().get("begin")
        if mode is not None:
            connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def reading(engine: Engine) -> Session:
    """A session that only reads. Each SELECT stands alone, so that no reader holds the lock that a commit waits for."""
    return Session(engine, expire_on_commit=False)


def writing(engine: Engine) -> Session:
    """A session whose transaction takes the write lock when it begins."""
    return Session(engine.execution_options(begin="IMMEDIATE"), expire_on_commit=False)


def migrate(engine: Engine) -> None:
    """Bring the schema to ``SCHEMA``. Alembic is imported only where something is to do."""
    with engine.connect() as connection:
        try:
            current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except Exception:  # no such table: a new database
            current = None
    if current == SCHEMA:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.execution_options(begin="IMMEDIATE").connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
