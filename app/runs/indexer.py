"""Turns run folders into rows of the database: follows the event logs of live runs, finds new folders, rebuilds everything.

The rows of a run, and how far its log was read, change in one transaction. So nothing is lost or counted twice, however
often the server dies. Every status comes from ``app.runs.lifecycle``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete
from sqlalchemy.exc import OperationalError, StatementError
from sqlmodel import Session, col, select
from sqlmodel.sql.expression import SelectOfScalar

from app.runs import lifecycle
from app.store.database import reading, writing
from app.store.predictions import PredictionsError, load_correct
from app.store.queries import next_version
from app.store.tables import ACTIVE, Epoch, Run
from trainer.config import config_hash, group_hash
from trainer.events import TERMINAL
from trainer.run_folder import EventLogChanged, RunFolder, iter_valid_events, read_events

logger = logging.getLogger(__name__)
_LOOK_AT_ALL_SECONDS = 30.0
_RATE_NEEDS_SECONDS = 0.5  # below that a rate of steps is mostly noise
_UNREADY_SECONDS = 600.0  # how long a new folder may lack its run.json: the time that a process needs to start
_COARSE_SECONDS = 1.0  # within it two changes of a folder may have the same time
_STARTED_FIELDS = (
    "num_parameters",
    "device",
    "precision",
    "test_fingerprint",
    "num_train",
    "num_test",
    "class_names",
    "steps_per_epoch",
    "total_steps",
)
_EPOCH_FIELDS = set(Epoch.model_fields) - {"run_id", "ended_at"}
_LAST_EPOCH_FIELDS = (
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "test_correct",
    "test_total",
    "validation_accuracy",
)


# Events --------------------------------------------------------------------------------------------------------------


def apply(session: Session, folder: RunFolder, run: Run, events: Iterable[dict[str, Any]]) -> None:
    """Update the rows of a run with its next events. Accuracies are counted from the stored predictions."""
    has_epochs = False
    for event in events:
        run.updated_at = event["time"]
        match event["type"]:
            case "started":
                _apply_started(run, event)
            case "progress":
                run.phase = {key: event[key] for key in ("what", "done", "total", "unit")}
            case "step":
                run.phase = None
                _move_to(run, event["step"], event["time"])
            case "epoch":
                _apply_epoch(session, folder, run, event)
                has_epochs = True
            case kind if kind in TERMINAL:
                lifecycle.apply_ended(run, event)
    if has_epochs:
        session.flush()
        summarize(session, run)


def _apply_started(run: Run, event: dict[str, Any]) -> None:
    lifecycle.apply_started(run, event)
    run.rate_step = run.rate_at = run.seconds_left = None
    run.step = (event["first_epoch"] - 1) * event["steps_per_epoch"]
    for name in _STARTED_FIELDS:
        setattr(run, name, event[name])


def _move_to(run: Run, step: int, time: str) -> None:
    """Set the run's position, and estimate the time left from the rate of this attempt."""
    run.step = step
    if run.rate_step is None or run.rate_at is None:
        run.rate_step, run.rate_at = step, time
        return
    seconds = _seconds_between(run.rate_at, time)
    if seconds >= _RATE_NEEDS_SECONDS and step > run.rate_step and run.total_steps:
        run.seconds_left = (run.total_steps - step) * seconds / (step - run.rate_step)


def _seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def _apply_epoch(session: Session, folder: RunFolder, run: Run, event: dict[str, Any]) -> None:
    values: dict[str, Any] = {name: event.get(name) for name in _EPOCH_FIELDS}
    values["flops"] = values["flops"] or None  # 0 where the net could not be counted
    values.update(_counted(folder, event))
    session.merge(Epoch(run_id=run.id, ended_at=event["time"], **values))
    run.fruitless_attempts = 0
    _move_to(run, event["step"], event["time"])


def _counted(folder: RunFolder, event: dict[str, Any]) -> dict[str, Any]:
    """The fields of an epoch that the stored predictions contradict; empty where they agree or can't be read."""
    try:
        correct = load_correct(folder, event["epoch"])
    except PredictionsError:  # shown wherever predictions are
        return {}
    counted = int(correct.sum())
    if not len(correct) or counted == event["test_correct"]:
        return {}
    logger.warning("Run %s: the predictions of epoch %s do not give what its log says.", folder.id, event["epoch"])
    return {
        "test_correct": counted,
        "test_total": len(correct),
        "test_accuracy": counted / len(correct),
        "logged_correct": event["test_correct"],
    }


def summarize(session: Session, run: Run) -> None:
    """Set the columns of a run that repeat its epochs: last, best and sums."""
    epochs = session.exec(select(Epoch).where(Epoch.run_id == run.id).order_by(col(Epoch.epoch))).all()
    if not epochs:
        return
    last = epochs[-1]
    best = max(epochs, key=lambda e: (_score(e), -e.epoch))
    run.epochs_done = last.epoch
    for name in _LAST_EPOCH_FIELDS:
        setattr(run, name, getattr(last, name))
    run.best_epoch, run.best_score, run.best_test_accuracy = best.epoch, _score(best), best.test_accuracy
    run.train_seconds = sum(e.seconds for e in epochs)
    run.evaluation_seconds = sum(e.evaluation_seconds for e in epochs)
    images = sum(e.images_per_second * e.seconds for e in epochs)
    run.images_per_second = images / run.train_seconds if run.train_seconds else None
    flops = [e.flops for e in epochs if e.flops is not None]
    run.flops = sum(flops) if len(flops) == len(epochs) else None
    run.defect = next((_defect(epoch) for epoch in reversed(epochs) if epoch.logged_correct is not None), None)


def _score(epoch: Epoch) -> float:
    """What the best epoch is chosen by: validation accuracy where there is one, else test accuracy."""
    return epoch.test_accuracy if epoch.validation_accuracy is None else epoch.validation_accuracy


def _defect(epoch: Epoch) -> dict[str, Any]:
    """The arguments of ``predictions.defect_of``, which makes the sentence in the reader's language."""
    return {
        "epoch": epoch.epoch,
        "counted": epoch.test_correct,
        "num_images": epoch.test_total,
        "reported": epoch.logged_correct,
    }


# Whole folders -------------------------------------------------------------------------------------------------------


def ingest(session: Session, folder: RunFolder) -> Run | None:
    """Replace the rows of a folder by new ones from all its files; None where it holds no run (yet)."""
    run = _row_of(folder)
    if run is None:
        return None
    _delete_rows(session, run.id)
    session.add(run)
    session.flush()
    lines = list(iter_valid_events(folder.events_path))
    apply(session, folder, run, [event for event, _end in lines])
    last_event = None
    if lines:
        last_event, run.event_offset = lines[-1]
        run.event_seq = last_event["seq"]
    lifecycle.restore(run, folder, last_event)
    run.version = next_version(session)
    return run


def _row_of(folder: RunFolder) -> Run | None:
    """A row from run.json and config.json, before any event; None where the folder holds no run (yet)."""
    record = folder.read_run()
    if record is None:
        return None
    try:
        config = folder.read_config()
    except (OSError, ValueError) as error:
        logger.warning("%s is not a run: %s", folder.path, error)
        return None
    created_at = str(record.get("created_at", ""))
    return Run(
        id=folder.id,
        name=record.get("name", ""),
        status=record.get("status") or "queued",
        config=config.model_dump(),
        dataset=config.dataset,
        model=config.model,
        config_hash=config_hash(config),
        group=group_hash(config),
        sweep=record.get("sweep"),
        seed=config.seed,
        epochs=config.epochs,
        tags=record.get("tags", []),
        notes=record.get("notes", ""),
        archived=record.get("archived", False),
        warnings=record.get("warnings", []),
        created_at=created_at,
        queued_at=record.get("queued_at", created_at),
        error=record.get("error"),
        attempt=record.get("after_attempt", 0),
        fruitless_attempts=record.get("fruitless_attempts", 0),
    )


def _delete_rows(session: Session, run_id: str) -> None:
    session.exec(delete(Epoch).where(col(Epoch.run_id) == run_id))
    session.exec(delete(Run).where(col(Run.id) == run_id))


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
        return select(Run)

    def _has_news(self, run: Run) -> bool:
        try:
            return RunFolder(self.runs / run.id).events_path.stat().st_size != run.event_offset
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
                _delete_rows(session, run_id)
            for folder in new:
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
        """Drop all rows and read every folder again; returns the number of runs."""
        with writing(self.engine) as session:
            version = next_version(session)
            session.exec(delete(Epoch))
            session.exec(delete(Run))
            runs = []
            for folder in self._folders():
                with _isolated(session, folder.id):
                    run = ingest(session, folder)
                    runs += [run] if run else []
            for number, run in enumerate(runs):
                run.version = version + number
            session.commit()
        return len(runs)


def _is_unready(folder: RunFolder) -> bool:
    """Whether a folder without run.json is so new that its files may not be complete yet."""
    try:
        return not (folder.path / "run.json").exists() and time.time() - folder.path.stat().st_mtime < _UNREADY_SECONDS
    except OSError:
        return False


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
