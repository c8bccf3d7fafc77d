"""Turns run folders into rows: tails ``events.jsonl`` of live runs, finds folders that have no row yet, rebuilds everything.

Rows, offset and seq change in one transaction, so nothing is lost or doubled however often the server dies.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, func
from sqlalchemy.exc import OperationalError, StatementError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from app.store.database import reading, writing
from app.store.predictions import PredictionsError, load_correct
from app.store.tables import ACTIVE, Epoch, Run
from trainer.config import config_hash, group_hash
from trainer.events import TERMINAL
from trainer.run_folder import EventLogChanged, RunFolder, iter_valid_events, read_events

logger = logging.getLogger(__name__)
_EPOCH_FIELDS = set(Epoch.model_fields) - {"run_id", "ended_at"}
_LOOK_AT_ALL_SECONDS = 30.0
_RATE_NEEDS_SECONDS = 0.5  # below that a rate of steps is mostly noise
_UNREADY_SECONDS = 600.0  # so long a new folder may lack its run.json: the time that a process needs to begin
_COARSE_SECONDS = 1.0  # within it two changes of a folder may have the same time


def next_version(session: Session) -> int:
    """The number that the next change of any run gets; conditional requests compare it.

    It is never given twice, even after the run with the highest one was deleted: hence the milliseconds below it.
    """
    return max((session.exec(select(func.max(Run.version))).one() or 0) + 1, time.time_ns() // 1_000_000)


def row_from_folder(folder: RunFolder) -> Run | None:
    """A row from run.json and config.json, before any event; None where the folder holds no run (yet)."""
    run = folder.read_run()
    if run is None:
        return None
    try:
        config = folder.read_config()
    except (OSError, ValueError) as error:
        logger.warning("%s is not a run: %s", folder.path, error)
        return None
    created_at = str(run.get("created_at", ""))
    return Run(
        id=folder.id, name=run.get("name", ""), status=run.get("status") or "queued", config=config.model_dump(),
        dataset=config.dataset, model=config.model, config_hash=config_hash(config), group=group_hash(config),
        sweep=run.get("sweep"), seed=config.seed, epochs=config.epochs, tags=run.get("tags", []),
        notes=run.get("notes", ""), archived=run.get("archived", False), warnings=run.get("warnings", []),
        created_at=created_at, queued_at=run.get("queued_at", created_at), error=run.get("error"),
        attempt=run.get("after_attempt", 0), fruitless_attempts=run.get("fruitless_attempts", 0),
    )  # fmt: skip


def apply(session: Session, folder: RunFolder, run: Run, events: Iterable[dict[str, Any]]) -> None:
    """Bring the row up to what the events say, and accuracies to what the stored answers give."""
    has_epochs = False
    for event in events:
        run.updated_at = event["time"]
        match event["type"]:
            case "started":
                _started(run, event)
            case "progress":
                run.phase = {key: event[key] for key in ("what", "done", "total", "unit")}
            case "step":
                run.phase = None
                _position(run, event["step"], event["time"])
            case "epoch":
                _epoch(session, folder, run, event)
                has_epochs = True
            case kind if kind in TERMINAL:
                _ended(run, event)
    if has_epochs:
        session.flush()
        summarize(session, run)


def _started(run: Run, event: dict[str, Any]) -> None:
    run.status, run.error, run.finished_at, run.phase = "running", None, None, None
    run.attempt = max(run.attempt, event["attempt"])
    run.started_at = run.started_at or event["time"]
    run.rate_step = run.rate_at = run.seconds_left = None
    run.step = (event["first_epoch"] - 1) * event["steps_per_epoch"]
    for name in ("num_parameters", "device", "precision", "test_fingerprint", "num_train", "num_test", "class_names",
                 "steps_per_epoch", "total_steps"):  # fmt: skip
        setattr(run, name, event[name])


def _seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _position(run: Run, step: int, time: str) -> None:
    """Move the run to ``step`` and estimate what is left from the rate of this attempt."""
    run.step = step
    if run.rate_step is None or run.rate_at is None:
        run.rate_step, run.rate_at = step, time
        return
    seconds = _seconds_between(run.rate_at, time)
    if seconds >= _RATE_NEEDS_SECONDS and step > run.rate_step and run.total_steps:
        run.seconds_left = (run.total_steps - step) * seconds / (step - run.rate_step)


def _epoch(session: Session, folder: RunFolder, run: Run, event: dict[str, Any]) -> None:
    values: dict[str, Any] = {name: event.get(name) for name in _EPOCH_FIELDS}
    values["flops"] = values["flops"] or None  # 0 where the net could not be counted
    values.update(_counted(folder, event))
    session.merge(Epoch(run_id=run.id, ended_at=event["time"], **values))
    run.fruitless_attempts = 0
    _position(run, event["step"], event["time"])


def _counted(folder: RunFolder, event: dict[str, Any]) -> dict[str, Any]:
    """What the stored answers of an epoch say otherwise than its event; nothing where they agree or can't be read."""
    try:
        correct = load_correct(folder, event["epoch"])
    except PredictionsError:  # said where answers are shown
        return {}
    counted = int(correct.sum())
    if not len(correct) or counted == event["test_correct"]:
        return {}
    logger.warning("Run %s: answers of epoch %s do not give what its log says.", folder.id, event["epoch"])
    return {
        "test_correct": counted, "test_total": len(correct), "test_accuracy": counted / len(correct),
        "logged_correct": event["test_correct"],
    }  # fmt: skip


def summarize(session: Session, run: Run) -> None:
    """Recompute from the epochs what the row repeats of them: last, best and sums."""
    epochs = session.exec(select(Epoch).where(Epoch.run_id == run.id).order_by(col(Epoch.epoch))).all()
    if not epochs:
        return
    last = epochs[-1]
    best = max(epochs, key=lambda e: (_score(e), -e.epoch))
    run.epochs_done = last.epoch
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_correct", "test_total",
                 "validation_accuracy"):  # fmt: skip
        setattr(run, name, getattr(last, name))
    run.best_epoch, run.best_score, run.best_test_accuracy = best.epoch, _score(best), best.test_accuracy
    run.train_seconds = sum(e.seconds for e in epochs)
    run.evaluation_seconds = sum(e.evaluation_seconds for e in epochs)
    seen = sum(e.images_per_second * e.seconds for e in epochs)
    run.images_per_second = seen / run.train_seconds if run.train_seconds else None
    flops = [e.flops for e in epochs if e.flops is not None]
    run.flops = sum(flops) if len(flops) == len(epochs) else None
    run.defect = next((_defect(epoch) for epoch in reversed(epochs) if epoch.logged_correct is not None), None)


def _defect(epoch: Epoch) -> dict[str, Any]:
    """The arguments of ``predictions.defect_of``: the sentence is made in the reader's language."""
    return {
        "epoch": epoch.epoch, "counted": epoch.test_correct, "num_images": epoch.test_total,
        "reported": epoch.logged_correct,
    }  # fmt: skip


def _score(epoch: Epoch) -> float:
    """What the best epoch is chosen by: validation accuracy where there is one."""
    return epoch.test_accuracy if epoch.validation_accuracy is None else epoch.validation_accuracy


def _ended(run: Run, event: dict[str, Any]) -> None:
    run.status, run.finished_at = event["type"], event["time"]
    run.seconds_left, run.phase, run.cancel_requested = None, None, False
    if event["type"] == "failed":
        run.error = {key: event[key] for key in ("error", "message", "advice")}


def ingest(session: Session, folder: RunFolder) -> Run | None:
    """Make the row of a folder anew from all its files; None where it holds no run."""
    run = row_from_folder(folder)
    if run is None:
        return None
    session.exec(delete(Epoch).where(col(Epoch.run_id) == run.id))
    session.exec(delete(Run).where(col(Run.id) == run.id))
    session.add(run)
    session.flush()
    said = folder.read_run() or {}
    fruitless = run.fruitless_attempts
    last_type, attempts = None, 0
    lines = list(iter_valid_events(folder.events_path))
    apply(session, folder, run, [event for event, _end in lines])
    if lines:
        last, run.event_offset = lines[-1]
        run.event_seq, last_type, attempts = last["seq"], last["type"], last["attempt"]
    if said.get("after_attempt", 0) >= attempts and said.get("status"):
        # The server spoke last: queued again, cancelled in the queue, or could not start.
        run.status, run.error, run.fruitless_attempts = said["status"], said.get("error"), fruitless
        run.finished_at = None if run.status == "queued" else said.get("ended_at") or run.finished_at
        run.seconds_left, run.phase, run.cancel_requested = None, None, False
    elif last_type not in TERMINAL:
        run.status = "running"  # the scheduler finds out whether its process is alive
        run.cancel_requested = folder.stop_requested()
    run.version = next_version(session)
    return run


class Indexer:
    """Keeps the database abreast of the folders below ``runs``."""

    def __init__(self, engine: Engine, runs: Path) -> None:
        self.engine = engine
        self.runs = runs
        self._seen_mtime = 0.0
        self._look_at_all_at = 0.0

    def tick(self) -> bool:
        """Index what is new; True when anything changed."""
        found = self.discover()
        with reading(self.engine) as session:
            pending = [run for run in session.exec(self._to_look_at()).all() if self._has_news(run)]
        if not pending:
            return found
        with writing(self.engine) as session:
            for run in pending:
                with _one_run(session, run.id):
                    self.read(session, run.id)
            session.commit()
        return True

    def _to_look_at(self) -> SelectOfScalar[Run]:
        """The live runs; now and then all, for a command may have gone on with an ended one."""
        if time.monotonic() < self._look_at_all_at:
            return select(Run).where(col(Run.status).in_(ACTIVE))
        self._look_at_all_at = time.monotonic() + _LOOK_AT_ALL_SECONDS
        return select(Run)

    def _has_news(self, run: Run) -> bool:
        try:
            return (self.runs / run.id / "events.jsonl").stat().st_size != run.event_offset
        except FileNotFoundError:
            return run.event_offset != 0

    def read(self, session: Session, run_id: str) -> Run | None:
        """Apply the new events of one run within the caller's transaction; a changed log is read again from the start."""
        run = session.get(Run, run_id)
        if run is None:
            return None
        folder = RunFolder(self.runs / run_id)
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

        A row whose folder is gone goes too: the folder is the truth.
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
        added = 0
        if new or gone:
            with writing(self.engine) as session:
                for name in gone:
                    logger.warning("The folder of run %s is gone, so its row goes too.", name)
                    session.exec(delete(Epoch).where(col(Epoch.run_id) == name))
                    session.exec(delete(Run).where(col(Run.id) == name))
                for folder in new:
                    with _one_run(session, folder.id):
                        added += ingest(session, folder) is not None
                session.commit()
        if not any(_is_unready(folder) for folder in new) and time.time() - mtime > _COARSE_SECONDS:
            self._seen_mtime = mtime
        return bool(added or gone)

    def _folders(self) -> list[RunFolder]:
        """Every folder that may hold a run; a name with a dot in front is one that is being deleted."""
        if not self.runs.is_dir():
            return []
        found = sorted(path for path in self.runs.iterdir() if path.is_dir() and not path.name.startswith("."))
        return [RunFolder(path) for path in found]

    def rebuild(self) -> int:
        """Drop all rows and read every folder again; returns the number of runs."""
        with writing(self.engine) as session:
            version = next_version(session)
            session.exec(delete(Epoch))
            session.exec(delete(Run))
            runs = []
            for folder in self._folders():
                with _one_run(session, folder.id):
                    run = ingest(session, folder)
                    runs += [run] if run else []
            for number, run in enumerate(runs):
                run.version = version + number
            session.commit()
        return len(runs)


def _is_unready(folder: RunFolder) -> bool:
    """Whether a folder without run.json is so new that it may yet become a run: its files are on their way."""
    try:
        return not (folder.path / "run.json").exists() and time.time() - folder.path.stat().st_mtime < _UNREADY_SECONDS
    except OSError:
        return False


@contextmanager
def _one_run(session: Session, run_id: str) -> Iterator[None]:
    """Keep what a broken folder (a hand-edited run.json, say) does wrong to that run: undone, logged, the others go on."""
    try:
        with session.begin_nested():
            yield
    except (ValueError, TypeError, KeyError, AttributeError, StatementError) as error:
        if isinstance(error, OperationalError):
            raise
        logger.warning("Run %s can't be read: %r", run_id, error)
