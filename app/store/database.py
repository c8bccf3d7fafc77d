"""The SQLite engine: settings of connections, sessions, and the migration of the schema at startup."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlmodel import Session

from app.store.tables import Epoch, Run

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


def set_aside_if_damaged(path: Path) -> Path | None:
    """Rename a database that SQLite can't read as it was written, with its journal, so that a new one can be made.

    Returns the new path, or None if nothing is wrong. No other process may use the database.
    """
    if not path.exists() or _is_intact(path):
        return None
    kept = path.with_name(f"{path.name}.damaged")
    for suffix in ("-journal", "-wal", "-shm", ""):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.replace(kept.with_name(kept.name + suffix))
    return kept


def _is_intact(path: Path) -> bool:
    """Whether SQLite finds no damage, and the tables of the latest schema have their columns."""
    try:
        with closing(sqlite3.connect(path, timeout=30)) as connection:
            if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                return False
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:  # a new file
                return True
            if connection.execute("SELECT version_num FROM alembic_version").fetchone() != (SCHEMA,):
                return True
            for model in (Run, Epoch):
                columns = {row[1] for row in connection.execute(f"PRAGMA table_info({model.__tablename__})")}
                if columns != set(model.model_fields):
                    return False
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
            raise
        return False
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return False
    return True
