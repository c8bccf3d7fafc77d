"""The SQLite engine: settings of connections, sessions, and the migration of the schema at startup."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlmodel import Session

SCHEMA = "0005"  # the latest revision in app/store/migrations/versions
_WAL_IS_SAFE_FROM = (3, 51, 3)  # older versions can corrupt a database in WAL mode


def make_engine(path: Path) -> Engine:
    """Create the engine for the database at ``path``. Use it through ``reading`` and ``writing``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        f"sqlite:///{path}",
        connect_args={"timeout": 30, "check_same_thread": False},
        poolclass=NullPool,  # opening a connection is cheaper than waiting for one
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin or commit automatically
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
    """A session for reading. Each SELECT is its own transaction, so a reader never blocks a commit for long."""
    return Session(engine, expire_on_commit=False)


def writing(engine: Engine) -> Session:
    """A session for writing. Its transaction takes the write lock when it begins."""
    return Session(engine.execution_options(begin="IMMEDIATE"), expire_on_commit=False)


def migrate(engine: Engine) -> None:
    """Upgrade the schema to ``SCHEMA``. Alembic is imported only if an upgrade is needed."""
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
