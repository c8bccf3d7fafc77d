"""The SQLite engine: settings of connections, sessions, and the migration of the schema at startup."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, NullPool, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from app.store.tables import Epoch, Run
from trainer.files import now
from trainer.i18n import _

SCHEMA = "0005"  # the latest revision in app/store/migrations/versions
BUSY_SECONDS = 2.0  # how long SQLite waits for another program's lock before a request is answered by 503
_OWN_WRITER_SECONDS = 30.0  # how long a writer waits for another one of this process
_writer = threading.RLock()
_OPEN_SECONDS = 10.0  # the same at a start, which has nobody else to answer
_LONGEST_PATH = 500  # bytes; SQLite takes 511, with the suffix of its journal
_NOT_DAMAGE = {  # SQLite's codes for what is in the way of a database that may be whole
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
_JOURNAL_BYTES = 4 * 2**20  # below that, a journal may not fit on the disk
_WAL_IS_SAFE_FROM = (3, 51, 3)  # older versions can corrupt a database in WAL mode


def make_engine(path: Path) -> Engine:
    """Create the engine for the database at ``path``. Use it through ``reading`` and ``writing``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.touch()

    def connect() -> sqlite3.Connection:
        """Open the file. A missing one is not created: its disk may not be mounted. Raises ``sqlite3.DatabaseError``."""
        if not path.exists():
            raise sqlite3.DatabaseError("the file is missing")
        address = f"file:{quote(str(path))}?mode=rw"
        return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)

    engine = create_engine(
        f"sqlite:///{path}",
        creator=connect,
        poolclass=NullPool,  # opening a connection is cheaper than waiting for one
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin or commit automatically
        wal = sqlite3.sqlite_version_info >= _WAL_IS_SAFE_FROM
        for pragma in (
            "foreign_keys = ON",
            f"journal_mode = {'WAL' if wal else _journal_beside(path)}",
            f"synchronous = {'FULL' if wal else 'EXTRA'}",
            f"busy_timeout = {BUSY_SECONDS * 1000:.0f}",
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


def _journal_beside(path: Path) -> str:
    """The journal mode for older versions of SQLite: in memory if the disk is full.

    Rows can then still be changed, so that pages show the true status of a run. If the process is killed at that moment
    and the index is damaged, it is made again from the run folders.
    """
    try:
        is_full = shutil.disk_usage(path.parent).free < _JOURNAL_BYTES
    except OSError:
        is_full = False
    return "MEMORY" if is_full else "DELETE"


def reading(engine: Engine) -> Session:
    """A session for reading. Each SELECT is its own transaction, so a reader never blocks a commit for long."""
    return Session(engine, expire_on_commit=False)


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """A session for writing. Its transaction takes the write lock when it begins.

    Writers of this process wait for each other here, and not in SQLite, where they would have ``BUSY_SECONDS``.
    Raises ``TimeoutError`` if one takes too long.
    """
    with alone(), Session(engine.execution_options(begin="IMMEDIATE"), expire_on_commit=False) as session:
        yield session


@contextmanager
def alone() -> Iterator[None]:
    """Let no other thread of this process write. Raises ``TimeoutError`` if one takes too long."""
    if not _writer.acquire(timeout=_OWN_WRITER_SECONDS):
        raise TimeoutError(_("another change takes too long"))
    try:
        yield
    finally:
        _writer.release()


def last_write(path: Path) -> float:
    """When the index was written, in seconds since 1970; 0 if that is not known.

    A journal is left by a server that was killed. Whoever opens the index then writes to it.
    """
    try:
        return 0.0 if path.with_name(f"{path.name}-journal").exists() else path.stat().st_mtime
    except OSError:
        return 0.0


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


class IndexUnusable(RuntimeError):
    """The index can't be used now, and a new one would not help. The message says what to do."""


def open_index(path: Path, *, replace_newer: bool = False) -> tuple[Engine, str]:
    """The engine of an index of this version, made or brought up to date, and a sentence if the old one was set aside.

    A damaged index is renamed and a new one is made, empty until the run folders are read. A copy is kept of one that is
    brought up to date. Raises ``IndexUnusable`` for an index of a newer version, unless ``replace_newer`` sets it aside,
    and where the disk or another program is in the way.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        message = _(
            "The path {path} is too long for SQLite. Set RUNOFF_HOME to a folder with a path below {limit} bytes."
        )
        raise IndexUnusable(message.format(path=path, limit=_LONGEST_PATH - len(path.name)))
    try:
        told = _make_room(path, replace_newer=replace_newer)
        engine = make_engine(path)
        migrate(engine)
    except (sqlite3.OperationalError, OperationalError, OSError) as error:
        reason = getattr(error, "orig", None) or error
        message = _("The index {path} can't be used: {reason}. Free some space, or stop the program that uses it.")
        raise IndexUnusable(message.format(path=path, reason=reason)) from None
    return engine, told


def _make_room(path: Path, *, replace_newer: bool) -> str:
    """Set aside what is no index of this version; copy what will be migrated."""
    if not path.exists():
        return ""
    if not is_intact(path):
        told = _("The index was damaged, so a new one is made from the run folders. The old file is now {path}.")
        return told.format(path=_set_aside(path))
    with closing(sqlite3.connect(path, timeout=_OPEN_SECONDS)) as connection:
        revision = _revision(connection)
        if revision is not None and revision < SCHEMA:
            copy = path.with_name(f"{path.name}.before-{SCHEMA}")
            try:
                with closing(sqlite3.connect(copy)) as target:
                    connection.backup(target)
            except sqlite3.Error:
                copy.unlink(missing_ok=True)  # incomplete; the disk may be full
                raise
    if revision is None or revision <= SCHEMA:
        return ""
    if not replace_newer:
        message = _(
            "The index was written by a newer version of Runoff. Update Runoff, or make a new index: runoff reindex"
        )
        raise IndexUnusable(message)
    told = _("The index was written by a newer version of Runoff. A new one is made; the old file is now {path}.")
    return told.format(path=_set_aside(path))


def _set_aside(path: Path) -> Path:
    """Rename a database with its journal, and return its new path. Nothing is replaced."""
    stamp = now().translate(str.maketrans("", "", "-:."))
    kept = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in ("-journal", "-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    return kept


def _revision(connection: sqlite3.Connection) -> str | None:
    """The revision of the schema; None for a new file without tables. Raises ``sqlite3.DatabaseError``."""
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return None
    return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


def is_intact(path: Path) -> bool:
    """Whether SQLite finds no damage, and the tables of the latest schema have their columns."""
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(path, timeout=_OPEN_SECONDS)) as connection:
            if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                return False
            if _revision(connection) != SCHEMA:
                return True
            for model in (Run, Epoch):
                columns = {row[1] for row in connection.execute(f"PRAGMA table_info({model.__tablename__})")}
                if columns != set(model.model_fields):
                    return False
            read_all_rows(connection)
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE:
            raise
        return False
    except (sqlite3.DatabaseError, UnicodeDecodeError, TypeError):  # TypeError: no row in the table of the version
        return False
    return True


def read_all_rows(connection: sqlite3.Connection) -> None:
    """Read every row. SQLite does not check texts otherwise: ``sqlite3.OperationalError`` is raised for one that is not UTF-8."""
    for model in (Run, Epoch):
        for _row in connection.execute(f"SELECT * FROM {model.__tablename__}"):
            continue


def is_locked(error: BaseException) -> bool:
    """Whether an error of SQLite means that another program locked the database for too long."""
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_damage(error: BaseException) -> bool:
    """Whether an error of SQLite means that the file is not the index any more: damaged, emptied or replaced."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, sqlite3.OperationalError):
        return "no such table" in str(cause) or "no such column" in str(cause)
    return isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.IntegrityError)
