"""Checks a home against its checksums, and its parts against each other: run folders, data sets, index. Nothing is changed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Engine, StaticPool, create_engine
from sqlmodel import Session, SQLModel

from app.runs.ingest import ingest, lost_lines
from app.runs.remedies import Known, known_of, remedies_for
from app.runs.repair import unlike_the_log
from app.settings import Settings
from app.store.database import SCHEMA, make_engine, read_all_rows
from app.store.tables import ACTIVE
from trainer.damage import damage_of
from trainer.datasets import catalogue, integrity
from trainer.event_log import read_log
from trainer.files import DamagedFile, read_sealed
from trainer.home import id_paths
from trainer.i18n import _
from trainer.run_folder import RunFolder

_NOT_IN_FOLDERS = {
    "hanging_since",
    "version",
    "fruitless_attempts",
    "device",
    "rate_step",
    "rate_at",
    "seconds_left",
    "phase",
    "queue_reason",
    "updated_at",
    "queued_at",
}
_SHOWN_COLUMNS = 5


@dataclass(frozen=True)
class Checked:
    """One thing that was checked: a sentence for each thing that is wrong with it, and what other copies hold."""

    name: str  # of a run its id
    problems: list[str]
    remedies: list[str] = field(default_factory=list)  # of a run: what --restore can replace
    advice: str = ""  # what else to do


# Takes the runs checked, all runs, and a sentence about what is read after them.
Progress = Callable[[int, int, str], None]


def check_home(
    settings: Settings, runs: Sequence[str] = (), *, full: bool = False, progress: Progress = lambda *_values: None
) -> Iterator[Checked]:
    """Check the runs with these ids, or the whole home. With ``full`` every file is read and compared with its SHA-256."""
    ids = list(runs) or _ids(settings.runs)
    engine = make_engine(settings.database) if settings.database.is_file() else None
    for number, run_id in enumerate(ids):
        progress(number, len(ids), "")
        yield _guarded(run_id, partial(_check_run, engine, RunFolder(settings.runs / run_id), full=full))
    note = partial(progress, len(ids), len(ids))
    note("")
    if not runs:
        yield from _check_datasets(settings.home, note, full=full)
        yield _check_home_id(settings.home)
        note(_("Reading the index."))
        yield _check_index(settings, ids, full=full)


def _guarded(name: str, check: Callable[[], Checked]) -> Checked:
    """What can't be read is named, and the others are checked."""
    try:
        return check()
    except OSError as error:
        where = f" ({Path(error.filename).name})" if error.filename else ""
        return Checked(name, [_("It can't be read: {reason}{where}.").format(reason=error.strerror, where=where)])
    except (ValueError, LookupError, TypeError) as error:
        return Checked(name, [_("It can't be checked: {reason}.").format(reason=error)])


def _ids(runs: Path) -> list[str]:
    return sorted(path.name for path in runs.glob("*") if path.is_dir() and not path.name.startswith("."))


def _check_run(engine: Engine | None, folder: RunFolder, *, full: bool) -> Checked:
    if not folder.path.is_dir():
        return Checked(folder.id, [_("There is no such run folder.")])
    if folder.is_empty() and not any(folder.path.iterdir()):
        return Checked(folder.id, [])
    known = known_of(engine, folder.id)
    problems = _problems(folder, known, full=full)
    if problems and folder.is_alive():  # the run may have changed files meanwhile; real damage is found twice
        again = _problems(folder, known, full=full)
        problems = [problem for problem in problems if problem in again]
    remedies = remedies_for(folder, known) if problems else []
    advice = ""
    if problems and not remedies:
        advice = _("A backup may have a copy: runoff check --restore {id} --backup FOLDER").format(id=folder.id)
    return Checked(folder.id, problems, [remedy.sentence for remedy in remedies], advice)


def _problems(folder: RunFolder, known: Known | None, *, full: bool) -> list[str]:
    log = read_log(folder.events_path)
    problems = damage_of(folder, log, full=full)
    problems += lost_lines(folder, known.run, log) if known is not None else []
    return [*problems, *unlike_the_log(folder, problems)] if full else problems


def _check_datasets(home: Path, note: Callable[[str], None], *, full: bool) -> Iterator[Checked]:
    for dataset in catalogue.list_datasets(home):
        note(_("Reading data set {name}.").format(name=dataset.name))
        if dataset.status == "damaged":
            yield Checked(dataset.name, [f"{dataset.problem} {dataset.advice}"])
        elif dataset.status == "ready":
            yield Checked(dataset.name, list(_wrong_images(home, dataset.name)) if full else [])


def _wrong_images(home: Path, name: str) -> Iterator[str]:
    try:
        integrity.verify(home, name, full=True)
    except catalogue.DatasetDamaged as error:
        yield f"{error.message} {error.advice}"


def _check_home_id(home: Path) -> Checked:
    problems = []
    for path in id_paths(home):
        try:
            read_sealed(path)
        except DamagedFile as problem:
            problems.append(_("{problem} The server writes it again from its other copy.").format(problem=problem))
    return Checked("home.json", problems)


# The index -----------------------------------------------------------------------------------------------------------


def _check_index(settings: Settings, ids: Sequence[str], *, full: bool) -> Checked:
    """The SQLite file, which is an index of the run folders: whole, and with a row for each folder."""
    path = settings.database
    if not path.exists():
        return Checked(path.name, [])
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as index:
            index.row_factory = sqlite3.Row
            answers = [row[0] for row in index.execute("PRAGMA integrity_check(5)")]
            problems = [] if answers == ["ok"] else [_("SQLite says: {what}.").format(what="; ".join(answers))]
            problems = problems or [*_unreadable_rows(index), *_wrong_rows(settings, index, ids, full=full)]
    except (UnicodeDecodeError, LookupError):  # a name in the schema is damaged
        problems = [_("Its tables are not those that Runoff makes.")]
    except sqlite3.DatabaseError as error:
        problems = [_("SQLite says: {what}.").format(what=error)]
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Checked(path.name, [_("Another program has locked it, so it could not be checked. Try again.")])
    advice = _("runoff reindex makes the index again from the run folders.")
    return Checked(path.name, problems, advice=advice if problems else "")


def _unreadable_rows(index: sqlite3.Connection) -> Iterator[str]:
    """Texts that are no UTF-8, which SQLite itself does not check. Pages can't show such a row."""
    try:
        read_all_rows(index)
    except sqlite3.OperationalError as error:
        yield _("SQLite says: {what}.").format(what=error)


def _wrong_rows(settings: Settings, index: sqlite3.Connection, ids: Sequence[str], *, full: bool) -> Iterator[str]:
    revision = index.execute("SELECT version_num FROM alembic_version").fetchone()
    if revision is None or revision[0] > SCHEMA:
        yield _("It was written by a newer version of Runoff.")
    if revision is None or revision[0] != SCHEMA:  # the server brings an older one up to date when it starts
        return
    rows = {row["id"] for row in index.execute("SELECT id FROM run")}
    for run_id in sorted(rows - set(ids)):
        if (settings.runs / run_id).is_dir():  # started since the ids were listed
            continue
        yield _("It has a row for run {id}, which has no folder.").format(id=run_id)
    for (run_id,) in index.execute("SELECT DISTINCT run_id FROM epoch WHERE run_id NOT IN (SELECT id FROM run)"):
        yield _("It has epochs of run {id}, which has no row.").format(id=run_id)
    for run_id in ids if full else ():
        folder = RunFolder(settings.runs / run_id)
        if _is_at_rest(index, run_id) and not damage_of(folder):
            wrong = list(_wrong_row(folder, index))
            if wrong and _is_at_rest(index, run_id):  # it may have been resumed meanwhile
                yield from wrong


def _is_at_rest(index: sqlite3.Connection, run_id: str) -> bool:
    row = index.execute("SELECT status FROM run WHERE id = ?", (run_id,)).fetchone()
    return row is not None and row["status"] not in (*ACTIVE, "damaged")


def _wrong_row(folder: RunFolder, index: sqlite3.Connection) -> Iterator[str]:
    """Compares the rows of a run that has ended with those that its folder gives."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    SQLModel.metadata.create_all(engine)
    with Session(engine) as session:
        ingest(session, folder)
        session.flush()
        made = cast(sqlite3.Connection, session.connection().connection.dbapi_connection)
        made.row_factory = sqlite3.Row
        for query in ("SELECT * FROM run WHERE id = ?", "SELECT * FROM epoch WHERE run_id = ? ORDER BY epoch"):
            found, expected = (_values(db, query, folder.id) for db in (index, made))
            if len(found) != len(expected):
                message = _("It has {found} epochs of run {id}, whose folder has {expected}.")
                yield message.format(found=len(found), id=folder.id, expected=len(expected))
                continue
            names = {
                name for row, other in zip(found, expected, strict=True) for name in row if row[name] != other[name]
            }
            if names:
                shown = ", ".join(sorted(names)[:_SHOWN_COLUMNS])
                yield _("Its row of run {id} is not what the folder says: {columns}.").format(
                    id=folder.id, columns=shown
                )


def _values(database: sqlite3.Connection, query: str, run_id: str) -> list[dict[str, Any]]:
    rows = database.execute(query, (run_id,)).fetchall()
    return [{name: _plain(row[name]) for name in row.keys() if name not in _NOT_IN_FOLDERS} for row in rows]  # noqa: SIM118


def _plain(value: Any) -> Any:
    """JSON columns as what they hold, so that the way of writing does not matter."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
