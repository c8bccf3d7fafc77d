"""Turns run folders into rows of the database: follows the event logs of live runs, finds new folders, rebuilds everything.

The rows of a run, and how far its log was read, change in one transaction. So nothing is lost or counted twice, however
often the server dies. Every status comes from ``app.runs.lifecycle``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, StatementError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from app.runs.ingest import apply, delete_rows, ingest
from app.store.database import reading, writing
from app.store.queries import next_version
from app.store.tables import ACTIVE, Run
from trainer.event_log import EventLogChanged, read_events
from trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)
_LOOK_AT_ALL_SECONDS = 30.0
_UNREADY_SECONDS = 600.0  # how long a new folder may lack its run.json: the time that a process needs to start
_COPYING_SECONDS = 10.0  # how long a copied folder must be without a change before it counts as complete
_MADE_SECONDS = 5.0  # run.json follows config.json within this time, unless the folder is a copy
_COARSE_SECONDS = 1.0  # within it two changes of a folder may have the same time


class Indexer:
    """Keeps the database up to date with the folders below ``runs``."""

    def __init__(self, engine: Engine, runs: Path) -> None:
        self.engine = engine
        self.runs = runs
        self._seen_mtime = 0.0
        self._look_at_all_at = 0.0

    def tick(self) -> bool:
        """Index what is new; True when anything changed."""
        has_changed = self.discover()
        with reading(self.engine) as session:
            pending = [run for run in session.exec(self._to_look_at()).all() if self._has_news(run)]
        if not pending:
            return has_changed
        with writing(self.engine) as session:
            for run in pending:
                with _isolated(session, run.id):
                    self.read(session, run.id)
            session.commit()
        return True

    def _to_look_at(self) -> SelectOfScalar[Run]:
        """The live runs; now and then all, because a command may have continued one that had ended."""
        if time.monotonic() < self._look_at_all_at:
            return select(Run).where(col(Run.status).in_(ACTIVE))
        self._look_at_all_at = time.monotonic() + _LOOK_AT_ALL_SECONDS
        return select(Run).where((col(Run.status) != "damaged") | col(Run.imported))

    def _has_news(self, run: Run) -> bool:
        folder = RunFolder(self.runs / run.id)
        if run.imported:  # it may not have been copied as a whole when it was found
            return 0 <= time.time() - _last_change(folder) < 2 * _LOOK_AT_ALL_SECONDS
        try:
            return folder.events_path.stat().st_size != run.event_offset
        except FileNotFoundError:
            return run.event_offset != 0

    def read(self, session: Session, run_id: str) -> Run | None:
        """Apply the new events of one run within the caller's transaction; a changed log is read again from the start."""
        run = session.get(Run, run_id)
        if run is None:
            return None
        folder = RunFolder(self.runs / run_id)
        if run.imported:
            session.expunge(run)
            return ingest(session, folder)
        try:
            chunk = read_events(folder.events_path, run.event_offset, run.event_seq)
        except EventLogChanged:
            logger.warning("The event log of run %s changed; reading it again.", run_id)
            session.expunge(run)
            return ingest(session, folder)
        if chunk.events:
            apply(session, folder, run, chunk.events)
            run.event_offset, run.event_seq = chunk.offset, chunk.events[-1]["seq"]
            run.version = next_version(session)
            session.add(run)
            session.flush()
        return run

    def discover(self) -> bool:
        """Add a row for each folder that has none, such as a copied run or one trained without the server.

        A row whose folder is gone is removed. True when anything changed.
        """
        try:
            mtime = self.runs.stat().st_mtime
        except FileNotFoundError:
            return False
        if mtime == self._seen_mtime:
            return False
        names = {folder.id for folder in self._folders()}
        with reading(self.engine) as session:
            known = set(session.exec(select(Run.id)).all())
        new = [RunFolder(self.runs / name) for name in sorted(names - known)]
        gone = [name for name in known - names if not (self.runs / name).is_dir()]
        num_added = self._replace(gone, new) if new or gone else 0
        if not any(_is_unready(folder) for folder in new) and time.time() - mtime > _COARSE_SECONDS:
            self._seen_mtime = mtime
        return bool(num_added or gone)

    def _replace(self, gone: Iterable[str], new: Iterable[RunFolder]) -> int:
        """Remove the rows of ``gone``, add those of ``new``. Returns how many were added."""
        num_added = 0
        with writing(self.engine) as session:
            for run_id in gone:
                logger.warning("The folder of run %s is gone, so its row is removed.", run_id)
                delete_rows(session, run_id)
            for folder in new:
                if not _is_unready(folder):
                    with _isolated(session, folder.id):
                        num_added += ingest(session, folder) is not None
            session.commit()
        return num_added

    def _folders(self) -> list[RunFolder]:
        """Every folder that may hold a run. One with a dot in front is being deleted."""
        if not self.runs.is_dir():
            return []
        paths = sorted(path for path in self.runs.iterdir() if path.is_dir() and not path.name.startswith("."))
        return [RunFolder(path) for path in paths]

    def rebuild(self) -> int:
        """Make every row again from its folder; returns the number of runs.

        What a damaged folder has lost stays as the row knows it. Rows without a folder are removed.
        """
        with writing(self.engine) as session:
            version = next_version(session)
            runs = []
            for folder in self._folders():
                with _isolated(session, folder.id):
                    run = ingest(session, folder)
                    runs += [run] if run else []
            for number, run in enumerate(runs):
                run.version = version + number
            session.flush()
            kept = {run.id for run in runs}
            for run_id in session.exec(select(Run.id)).all():
                if run_id not in kept:
                    delete_rows(session, run_id)
            session.commit()
        return len(runs)


def _is_unready(folder: RunFolder) -> bool:
    """Whether files may still be added to a new folder: its run.json is to come, or it is being copied here."""
    try:
        if not (folder.path / "run.json").exists():
            return time.time() - folder.path.stat().st_mtime < _UNREADY_SECONDS
        return _is_copy(folder) and time.time() - _last_change(folder) < _COPYING_SECONDS and not folder.is_alive()
    except OSError:
        return False


def _is_copy(folder: RunFolder) -> bool:
    """Whether the files are younger than the run; also where run.json can't be read."""
    record = folder.read_run()
    if record is None or not folder.config_path.exists():
        return True
    try:
        created = datetime.fromisoformat(record["created_at"]).timestamp()
    except (LookupError, TypeError, ValueError):
        return False
    return folder.config_path.stat().st_ctime - created > _MADE_SECONDS


def _last_change(folder: RunFolder) -> float:
    """When a file of the folder was last written, renamed or copied here; copying can't set this time to an older one."""
    changes = [0.0]
    for path in [folder.path, *folder.path.rglob("*")]:
        with suppress(FileNotFoundError):
            changes.append(path.stat().st_ctime)
    return max(changes)


@contextmanager
def _isolated(session: Session, run_id: str) -> Iterator[None]:
    """Keep what a broken folder (a run.json edited by hand, say) causes to that run: undone and logged."""
    try:
        with session.begin_nested():
            yield
    except (ValueError, TypeError, KeyError, AttributeError, StatementError) as error:
        if isinstance(error, OperationalError):
            raise
        logger.warning("Run %s can't be read: %r", run_id, error)
