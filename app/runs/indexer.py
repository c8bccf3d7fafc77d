"""Turns run folders into rows of the database: follows the event logs of live runs, finds new folders, rebuilds everything.

The rows of a run, and how far its log was read, change in one transaction. So nothing is lost or counted twice, however
often the server dies. Every status comes from ``app.runs.lifecycle``.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from app.runs import starting
from app.runs.copying import COPYING_SECONDS, is_unready, last_change
from app.runs.ingest import Rows, apply_to_rows, delete_rows, epochs_of_run, ingest, rows_of, store
from app.runs.presence import Check, unchecked
from app.runs.reader import Reader, Report
from app.schemas import IndexProgress
from app.store.database import alone, is_damage, last_write, open_index, reading, writing
from app.store.queries import next_version
from app.store.tables import ACTIVE, Run
from trainer.event_log import EventLogChanged, read_events
from trainer.i18n import _
from trainer.run_folder import RunFolder

logger = logging.getLogger(__name__)
_LOOK_AT_ALL_SECONDS = 30.0
_DISCOVER_SECONDS = 0.5  # how long a tick may read new folders; the rest follows at the next one
_MANY = 200  # more new folders than this are read in a separate process: about a second's work
_BATCH = 20  # folders whose rows are stored in one transaction, so that it holds the write lock for a moment only
_BETWEEN_BATCHES_SECONDS = 0.002
_COARSE_SECONDS = 1.0  # within it two changes of a folder may have the same time


class Indexer:
    """Keeps the database up to date with the folders below ``runs``. With a ``reader``, a process reads many folders.

    No row is removed while ``home_problem`` says that the folders are missing.
    """

    def __init__(
        self,
        engine: Engine,
        runs: Path,
        home_problem: Check = unchecked,
        *,
        reader: Reader | None = None,
        written_at: float | None = None,
    ) -> None:
        """``written_at`` is when an earlier server wrote the index; None: look at the file now."""
        self._home_problem = home_problem
        self.engine = engine
        self.runs = runs
        self._reader = reader
        self._may_read_many_at = 0.0
        self.progress: IndexProgress | None = None
        self._seen_mtime = 0.0
        self._next_new = 0  # index of the new folder with which the next tick begins
        self._look_at_all_at = 0.0
        self._file = self._file_now()
        self._is_suspect = False
        self._renewing = threading.Lock()
        self._again: set[str] = set()
        if written_at is None:
            written_at = last_write(Path(engine.url.database or ""))
        self._written_at: float | None = written_at  # None once a tick has looked what came later

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

    def _find_what_came_later(self) -> None:
        """At the first tick, find the runs that a killed server changed in the folder but not in the index."""
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
        if self._reader is not None and len(self._again) > _MANY:
            self._leave_to(self._reader, everything=True)
            self._again.clear()
        for run_id in list(self._again):
            folder = RunFolder(self.runs / run_id)
            if folder.path.is_dir():
                self._ingest([folder])
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
            is_another, is_gone = self._file_now() != self._file, self._file_now() is None
            with alone():
                engine, told = open_index(Path(path))
            engine.dispose()
            if is_another or told:
                removed = _("The index was removed, so a new one is made from the run folders.")
                replaced = _("The index was replaced, so it is compared with the run folders.")
                logger.warning(told or (removed if is_gone else replaced))
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
            return 0 <= time.time() - last_change(folder) < 2 * _LOOK_AT_ALL_SECONDS
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
        if self._remove_rows(gone) and gone:
            logger.warning("The folders of runs %s were gone, so their rows are removed.", ", ".join(gone))
        if self._reader is not None and len(new) > _MANY:
            self._leave_to(self._reader, mtime=mtime)
            return bool(gone)
        has_changed, is_complete = self._read_some(new)
        if is_complete and time.time() - mtime > _COARSE_SECONDS:
            self._seen_mtime = mtime
        return bool(has_changed or gone)

    def _leave_to(self, reader: Reader, *, mtime: float = 0.0, everything: bool = False) -> None:
        """Let the process read the new folders, or all, one process after the other.

        If nothing is left after that, the folder of runs is not looked at again while its time is ``mtime``.
        """

        def end(is_complete: bool) -> None:
            self.progress = None
            self._may_read_many_at = time.monotonic() + COPYING_SECONDS
            if is_complete and began_at - mtime > _COARSE_SECONDS:
                self._seen_mtime = mtime

        if time.monotonic() >= self._may_read_many_at:
            self._may_read_many_at = float("inf")
            began_at = time.time()
            reader.begin(self._report, end, everything=everything)

    def _report(self, progress: IndexProgress) -> None:
        self.progress = progress

    def _read_some(self, new: Sequence[RunFolder]) -> tuple[bool, bool]:
        """Read new folders for half a second. Returns whether the index changed, and whether no new folder is left."""
        deadline = time.monotonic() + _DISCOVER_SECONDS
        start = self._next_new % max(len(new), 1)
        has_changed, num_seen, num_unready = False, 0, 0
        for batch in _batches([*new[start:], *new[:start]]):
            ready = [folder for folder in batch if not is_unready(folder)]
            has_changed |= any(self._ingest(ready))
            num_seen += len(batch)
            num_unready += len(batch) - len(ready)
            if time.monotonic() >= deadline:
                break
        self._next_new = start + num_unready  # those that were read are no longer new
        return has_changed, num_seen == len(new) and not num_unready

    def read_new(self, report: Report) -> bool:
        """Read all folders that are not in the index yet; whether none of them has to be looked at again."""
        folders = self._folders()
        with reading(self.engine) as session:
            known = set(session.exec(select(Run.id)).all())
        new = [folder for folder in folders if folder.id not in known]
        num_seen, num_unready = len(folders) - len(new), 0
        for batch in _batches(new):
            ready = [folder for folder in batch if not is_unready(folder)]
            self._ingest(ready)
            num_seen += len(batch)
            num_unready += len(batch) - len(ready)
            report(IndexProgress(done=num_seen, total=len(folders)))
        return not num_unready

    def _remove_rows(self, run_ids: Sequence[str]) -> bool:
        """Remove the rows of runs whose folders are gone; False if the home itself is not there."""
        if self._home_problem():
            return False
        for start in range(0, len(run_ids), _BATCH):
            with writing(self.engine) as session:
                delete_rows(session, run_ids[start : start + _BATCH])
                session.commit()
        return True

    def _ingest(self, batch: Sequence[RunFolder]) -> list[bool]:
        """Read whole folders and store their rows in one short transaction. Returns for each whether it has a row."""
        rows = self._read_folders(batch)
        if rows:
            with writing(self.engine) as session:
                self._store(session, rows)
                session.commit()
        return [folder.id in rows for folder in batch]

    def _read_folders(self, batch: Sequence[RunFolder]) -> dict[str, Rows]:
        """The rows of folders by id, read without holding the database's write lock."""
        ids = [folder.id for folder in batch]
        read = {}
        with reading(self.engine) as session:
            before = {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(ids))).all()}
            for folder in batch:
                with _logged(folder.id):
                    rows = rows_of(folder, before.get(folder.id), partial(epochs_of_run, session))
                    if rows is not None:
                        read[folder.id] = rows
        return read

    def _store(self, session: Session, read: dict[str, Rows]) -> None:
        """Store rows that were read before. A run that was changed or deleted meanwhile is read again."""
        versions = dict(session.exec(select(Run.id, Run.version).where(col(Run.id).in_(read))).all())
        for run_id, rows in list(read.items()):
            if versions.get(run_id) != rows.version_before or not (self.runs / run_id).is_dir():
                del read[run_id]
                with _isolated(session, run_id):
                    ingest(session, RunFolder(self.runs / run_id))
        try:
            with session.begin_nested():
                store(session, list(read.values()))
        except Exception as error:
            if _is_no_fault_of_a_run(error):
                raise
            for run_id, rows in read.items():  # one of them does not fit
                with _isolated(session, run_id):
                    store(session, [rows])

    def _folders(self) -> list[RunFolder]:
        """Every folder that may hold a run, but not those that are being made, or removed (with a leading dot)."""
        if not self.runs.is_dir():
            return []
        with os.scandir(self.runs) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        being_made = starting.pending(self.runs.parent)
        return [RunFolder(self.runs / name) for name in names if name not in being_made]

    def rebuild(self, report: Report = lambda progress: None) -> int:
        """Make every row again from its folder; returns the number of runs.

        Of a damaged folder, values that are lost stay in the row. Rows without a folder are removed. Raises ``Problem`` if
        the process that reads the folders ends early.
        """
        self._is_suspect = True
        self._renew_if_lost()
        if self._reader is not None and len(self._folders()) > _MANY:
            try:
                count = self._reader.rebuild(self._report)
            finally:
                self.progress = None
        else:
            count = self.read_all(report)
        with reading(self.engine) as session:
            known = session.exec(select(Run.id)).all()
        self._remove_rows([run_id for run_id in known if RunFolder(self.runs / run_id).is_empty()])
        return count

    def read_all(self, report: Report) -> int:
        """Make the rows of all folders again in an intact index; returns the number of runs."""
        folders = self._folders()
        count = num_seen = 0
        for batch in _batches(folders):
            count += sum(self._ingest(batch))
            num_seen += len(batch)
            report(IndexProgress(done=num_seen, total=len(folders)))
        return count

    def end(self) -> None:
        """Stop the process that reads folders, when the server ends."""
        if self._reader is not None:
            self._reader.end()


def _batches(folders: Sequence[RunFolder]) -> Iterator[Sequence[RunFolder]]:
    """The folders in parts for one transaction each, with a pause between them in which others can write."""
    for start in range(0, len(folders), _BATCH):
        if start:
            time.sleep(_BETWEEN_BATCHES_SECONDS)
        yield folders[start : start + _BATCH]


@contextmanager
def _isolated(session: Session, run_id: str) -> Iterator[None]:
    """Log the errors of a broken folder, and roll back what was done for its run."""
    with _logged(run_id), session.begin_nested():
        yield


@contextmanager
def _logged(run_id: str) -> Iterator[None]:
    """Keep what a broken folder causes to that run: a run.json edited by hand, say, or a text that is no Unicode."""
    try:
        yield
    except Exception as error:
        if _is_no_fault_of_a_run(error):
            raise
        logger.warning("Run %s can't be read: %r", run_id, error)


def _is_no_fault_of_a_run(error: Exception) -> bool:
    return isinstance(error, OperationalError | MemoryError) or is_damage(error)
