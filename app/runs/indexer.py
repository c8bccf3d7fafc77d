"""Turns run folders into rows of the database: follows the event logs of live runs, finds new folders, rebuilds everything.

The rows of a run, and how far its log was read, change in one transaction. So nothing is lost or counted twice, however
often the server dies. Every status comes from ``app.runs.lifecycle``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError, StatementError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from app.runs.ingest import Rows, apply_to_rows, delete_rows, epochs_of_run, ingest, rows_of, store
from app.store.database import is_damage, open_index, reading, writing
from app.store.queries import next_version
from app.store.tables import ACTIVE, Run
from trainer.event_log import EventLogChanged, read_events
from trainer.i18n import _
from trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)
_LOOK_AT_ALL_SECONDS = 30.0
_UNREADY_SECONDS = 600.0  # how long a new folder may lack its run.json: the time that a process needs to start
_COPYING_SECONDS = 10.0  # how long a copied folder must be without a change before it counts as complete
_MADE_SECONDS = 5.0  # run.json follows config.json within this time, unless the folder is a copy
_DISCOVER_SECONDS = 0.5  # how long a tick may read new folders; the rest follows at the next one
_BATCH = 20  # folders whose rows are stored in one transaction, so that it holds the write lock for a moment only
_BETWEEN_BATCHES_SECONDS = 0.002
_COARSE_SECONDS = 1.0  # within it two changes of a folder may have the same time


class Indexer:
    """Keeps the database up to date with the folders below ``runs``."""

    def __init__(self, engine: Engine, runs: Path) -> None:
        self.engine = engine
        self.runs = runs
        self._seen_mtime = 0.0
        self._look_at_all_at = 0.0
        self._file = self._file_now()
        self._is_suspect = False
        self._renewing = threading.Lock()
        self._again: set[str] = set()
        self._written_at = self._time_of_last_write()  # None once a tick has looked what came later

    def tick(self) -> bool:
        """Index what is new; True when anything changed."""
        self._renew_if_lost()
        self._find_what_came_later()
        self._read_those_again()
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

    def suspect(self) -> None:
        """Look at the next tick whether the database is damaged. To be called after an error that says so."""
        self._is_suspect = True

    def read_again(self, run_id: str) -> None:
        """Make the row of a run again from its folder at the next tick, or remove it where there is no folder."""
        self._again.add(run_id)

    def _time_of_last_write(self) -> float | None:
        try:
            return Path(self.engine.url.database or "").stat().st_mtime
        except OSError:
            return None

    def _find_what_came_later(self) -> None:
        """At the first tick: find the runs that a killed server has changed in the folder, but not in the index."""
        if self._written_at is None:
            return
        with reading(self.engine) as session:
            known = session.exec(select(Run.id)).all()
        for folder in (RunFolder(self.runs / run_id) for run_id in known):
            for path in (folder.path / "run.json", folder.stop_path):
                with suppress(OSError):
                    if path.stat().st_mtime > self._written_at - _COARSE_SECONDS:
                        self._again.add(folder.id)
        self._written_at = None

    def _read_those_again(self) -> None:
        for run_id in list(self._again):
            folder = RunFolder(self.runs / run_id)
            if folder.path.is_dir():
                list(self._ingest([folder]))
            else:
                self._remove_rows([run_id])
            self._again.discard(run_id)

    def _renew_if_lost(self) -> None:
        """Make a new database where the old one was damaged, removed or replaced while the server works.

        Its rows are then made from the run folders, as those of new runs are.
        """
        path = self.engine.url.database
        with self._renewing:
            if not path or (self._file_now() == self._file and not self._is_suspect):
                return
            self._is_suspect = False
            is_another = self._file_now() != self._file
            engine, told = open_index(Path(path))
            engine.dispose()
            if is_another or told:
                logger.warning(told or _("The index was removed, so a new one is made from the run folders."))
                self._seen_mtime = 0.0
            self._file = self._file_now()

    def _file_now(self) -> tuple[int, int] | None:
        try:
            stat = Path(self.engine.url.database or "").stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino

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
            apply_to_rows(session, folder, run, chunk.events)
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
        for run_id in gone:
            logger.warning("The folder of run %s is gone, so its row is removed.", run_id)
        self._remove_rows(gone)
        ready = [folder for folder in new if not _is_unready(folder)]
        read = list(self._ingest(ready, _DISCOVER_SECONDS))
        is_complete = len(read) == len(new)
        if is_complete and time.time() - mtime > _COARSE_SECONDS:
            self._seen_mtime = mtime
        return bool(any(read) or gone)

    def _remove_rows(self, run_ids: Sequence[str]) -> None:
        if run_ids:
            with writing(self.engine) as session:
                for run_id in run_ids:
                    delete_rows(session, run_id)
                session.commit()

    def _ingest(self, folders: Sequence[RunFolder], seconds: float = float("inf")) -> Iterator[bool]:
        """Read whole folders in short transactions, so that others can write; whether each gave a row.

        Stops after ``seconds``.
        """
        deadline = time.monotonic() + seconds
        for start in range(0, len(folders), _BATCH):
            if time.monotonic() >= deadline:
                return
            batch = folders[start : start + _BATCH]
            read = self._read_folders(batch)
            with writing(self.engine) as session:
                for folder, rows in zip(batch, read, strict=True):
                    if rows is not None:
                        with _isolated(session, folder.id):
                            self._store(session, folder, rows)
                session.commit()
            yield from (rows is not None for rows in read)
            time.sleep(_BETWEEN_BATCHES_SECONDS)

    def _read_folders(self, folders: Sequence[RunFolder]) -> list[Rows | None]:
        """The rows of folders, read without holding the database's write lock."""
        with reading(self.engine) as session:
            ids = [folder.id for folder in folders]
            before = {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(ids))).all()}
            read: list[Rows | None] = []
            for folder in folders:
                rows = None
                with _isolated(session, folder.id):
                    rows = rows_of(folder, before.get(folder.id), partial(epochs_of_run, session))
                read.append(rows)
        return read

    def _store(self, session: Session, folder: RunFolder, rows: Rows) -> None:
        """Store rows that were read before. A run that was changed or deleted meanwhile is read again."""
        found = session.exec(select(Run.version).where(Run.id == folder.id)).first()
        if found != rows.version_before or not folder.path.is_dir():
            ingest(session, folder)
        else:
            store(session, rows)

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
        self._is_suspect = True
        self._renew_if_lost()
        folders = self._folders()
        has_rows = list(self._ingest(folders))
        kept = {folder.id for folder, has_row in zip(folders, has_rows, strict=True) if has_row}
        with reading(self.engine) as session:
            known = session.exec(select(Run.id)).all()
        self._remove_rows([run_id for run_id in known if run_id not in kept and not self._is_new(run_id)])
        return len(kept)

    def _is_new(self, run_id: str) -> bool:
        """Whether the row may be of a run that was started while the folders were read."""
        return not RunFolder(self.runs / run_id).is_empty()


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
    except (ValueError, TypeError, KeyError, AttributeError, StatementError, OSError) as error:
        if isinstance(error, OperationalError) or is_damage(error):
            raise
        logger.warning("Run %s can't be read: %r", run_id, error)
