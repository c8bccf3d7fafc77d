"""Makes the rows of a run from its folder: applies events one by one, or reads the whole folder again.

Every status comes from ``app.runs.lifecycle``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine, delete, insert
from sqlmodel import Session, SQLModel, col, select

from app.runs import lifecycle
from app.store.database import writing
from app.store.predictions import PredictionsError, load_correct
from app.store.queries import next_version
from app.store.tables import Epoch, Run, RunColumns
from trainer.config import RunConfig, config_hash, group_hash
from trainer.damage import RunRecord, damage_of
from trainer.event_log import EventLog, read_log
from trainer.events import TERMINAL
from trainer.i18n import _
from trainer.run_folder import RunFolder, read_json

logger = logging.getLogger(__name__)
Epochs = dict[int, dict[str, Any]]  # number -> the columns of its row
_RATE_NEEDS_SECONDS = 0.5  # below that a rate of steps is mostly noise
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


def apply(folder: RunFolder, run: RunColumns, epochs: Epochs, events: Iterable[dict[str, Any]]) -> None:
    """Update a run and its epochs with the next events. Accuracies are counted from the stored predictions."""
    has_epochs = False
    for event in events:
        run.updated_at = event["time"]
        run.attempt = max(run.attempt, event["attempt"])
        match event["type"]:
            case "started":
                _apply_started(run, event)
            case "progress":
                run.phase = {key: event[key] for key in ("what", "done", "total", "unit")}
            case "step":
                run.phase = None
                _move_to(run, event["step"], event["time"])
            case "epoch":
                epochs[event["epoch"]] = _epoch_of(folder, run, event)
                has_epochs = True
            case kind if kind in TERMINAL:
                lifecycle.apply_ended(run, event)
    if has_epochs:
        summarize(run, epochs)


def apply_to_rows(session: Session, folder: RunFolder, run: Run, events: Sequence[dict[str, Any]]) -> None:
    """As ``apply``, for a run that is in the index. Its epochs are read only if there is a new one."""
    has_epochs = any(event["type"] == "epoch" for event in events)
    known = epochs_of_run(session, run.id) if has_epochs else {}
    epochs = dict(known)
    apply(folder, run, epochs, events)
    for number, values in epochs.items():
        if values is not known.get(number):
            session.merge(Epoch(**values))
    session.add(run)
    session.flush()


def _apply_started(run: RunColumns, event: dict[str, Any]) -> None:
    lifecycle.apply_started(run, event)
    run.rate_step = run.rate_at = run.seconds_left = None
    run.step = (event["first_epoch"] - 1) * event["steps_per_epoch"]
    for name in _STARTED_FIELDS:
        setattr(run, name, event[name])
    machine = event.get("machine", "")
    if machine and machine not in run.machines:
        run.machines = [*run.machines, machine]


def _move_to(run: RunColumns, step: int, time: str) -> None:
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


def _epoch_of(folder: RunFolder, run: RunColumns, event: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {name: event.get(name) for name in _EPOCH_FIELDS}
    values["flops"] = values["flops"] or None  # 0 where the net could not be counted
    values.update(_counted(folder, event))
    run.fruitless_attempts = 0
    _move_to(run, event["step"], event["time"])
    return {"run_id": run.id, "ended_at": event["time"], **values}


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


def summarize(run: RunColumns, by_number: Epochs) -> None:
    """Set the columns of a run that repeat its epochs: last, best and sums."""
    epochs = [by_number[number] for number in sorted(by_number)]
    if not epochs:
        return
    last = epochs[-1]
    best = max(epochs, key=lambda values: (_score(values), -values["epoch"]))
    run.epochs_done = last["epoch"]
    for name in _LAST_EPOCH_FIELDS:
        setattr(run, name, last[name])
    run.best_epoch, run.best_score, run.best_test_accuracy = best["epoch"], _score(best), best["test_accuracy"]
    run.train_seconds = sum(values["seconds"] for values in epochs)
    run.evaluation_seconds = sum(values["evaluation_seconds"] for values in epochs)
    images = sum(values["images_per_second"] * values["seconds"] for values in epochs)
    run.images_per_second = images / run.train_seconds if run.train_seconds else None
    flops = [values["flops"] for values in epochs if values["flops"] is not None]
    run.flops = sum(flops) if len(flops) == len(epochs) else None
    run.defect = next(
        (_defect(values) for values in reversed(epochs) if values.get("logged_correct") is not None), None
    )


def _score(values: Mapping[str, Any]) -> float:
    """What the best epoch is chosen by: validation accuracy where there is one, else test accuracy."""
    score: float | None = values["validation_accuracy"]
    return float(values["test_accuracy"]) if score is None else score


def _defect(values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``predictions.defect_of``, which makes the sentence in the reader's language."""
    return {
        "epoch": values["epoch"],
        "counted": values["test_correct"],
        "num_images": values["test_total"],
        "reported": values["logged_correct"],
    }


# Whole folders -------------------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """The rows that a run folder gives. ``version_before`` is that of the row that was considered, None without one."""

    run: RunColumns
    epochs: Epochs
    version_before: int | None


def ingest(session: Session, folder: RunFolder, *, trust_row: bool = True) -> Run | None:
    """Replace the rows of a folder by new ones from all its files; None where it holds no run (yet).

    With ``trust_row`` what the index knew and a damaged folder has lost stays.
    """
    before = session.get(Run, folder.id)
    rows = rows_of(folder, before, partial(epochs_of_run, session), trust_row=trust_row)
    if rows is None:
        return None
    if before is not None:
        session.expunge(before)
    store(session, [rows])
    return session.get_one(Run, folder.id)


def add_new(engine: Engine, folders: Sequence[RunFolder]) -> list[Run]:
    """Add the rows of new runs in one transaction. Those that the indexer has found meanwhile stay as they are."""
    made = [rows for folder in folders if (rows := rows_of(folder, None, lambda _run_id: {}))]
    ids = [rows.run.id for rows in made]
    with writing(engine) as session:
        known = set(session.exec(select(Run.id).where(col(Run.id).in_(ids))).all())
        store(session, [rows for rows in made if rows.run.id not in known])
        by_id = {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(ids))).all()}
        session.commit()
    return [by_id[run_id] for run_id in ids]


def rows_of(
    folder: RunFolder,
    before: Run | None,
    epochs_before: Callable[[str], Epochs],
    *,
    trust_row: bool = True,
) -> Rows | None:
    """Read a whole folder without changing the database; ``epochs_before`` is asked if the folder is damaged."""
    if folder.is_empty():
        return None
    log = read_log(folder.events_path)
    problems = [*damage_of(folder, log), *(lost_lines(folder, before, log) if trust_row else [])]
    run = _row_of(folder, before)
    epochs: Epochs = {}
    apply(folder, run, epochs, log.events)
    run.fruitless_attempts = _fruitless_attempts(folder.read_run() or {}, log)
    if problems and trust_row and before is not None:
        _keep_what_was_known(run, epochs, before, epochs_before(folder.id))
    if log.last is not None:
        run.event_offset, run.event_seq = log.end, log.last["seq"]
    if problems and trust_row and before is not None:  # so that what was lost stays known
        run.event_seq = max(run.event_seq, before.event_seq)
    lifecycle.restore(run, folder, log.last, problems)
    return Rows(run, epochs, before.version if before is not None else None)


def store(session: Session, batch: Sequence[Rows]) -> None:
    """Replace the rows of runs. Raises ``sqlalchemy.exc.StatementError`` for values that no column takes."""
    delete_rows(session, [rows.run.id for rows in batch if rows.version_before is not None])
    for version, rows in enumerate(batch, start=next_version(session)):
        rows.run.version = version
    runs = [{name: getattr(rows.run, name) for name in Run.model_fields} for rows in batch]
    epochs = [
        {name: epoch.get(name) for name in Epoch.model_fields} for rows in batch for epoch in rows.epochs.values()
    ]
    for name, values in (("run", runs), ("epoch", epochs)):
        if values:
            session.connection().execute(insert(SQLModel.metadata.tables[name]), values)


def _fruitless_attempts(record: Mapping[str, Any], log: EventLog) -> int:
    """The number that run.json has, unless an attempt after that had an epoch."""
    after = record.get("after_attempt", 0)
    has_epoch = any(event["type"] == "epoch" and event["attempt"] > after for event in log.events)
    return 0 if has_epoch else int(record.get("fruitless_attempts", 0))


def lost_lines(folder: RunFolder, before: Run | None, log: EventLog) -> list[str]:
    """What the index has read before that the log does not say any more. A manifest proves that nothing is missing.

    A power cut may take the latest lines of steps, which are not synced one by one: that is no damage. Starts, epochs
    and ends are synced.
    """
    if before is None or log.damage or (log.last is not None and log.last["seq"] >= before.event_seq):
        return []
    if log.has_end and folder.manifest_path.exists():
        return []
    has_started = bool(log.events) or before.started_at is None
    if has_started and before.finished_at is None and before.epochs_done <= max(log.epochs, default=0):
        return []
    return [_("events.jsonl has lost lines: it had {n}.").format(n=f"{before.event_seq:,}")] if before.event_seq else []


def epochs_of_run(session: Session, run_id: str) -> Epochs:
    """The epochs of a run that the index knows."""
    rows = session.exec(select(Epoch).where(Epoch.run_id == run_id)).all()
    return {row.epoch: row.model_dump() for row in rows}


def _keep_what_was_known(run: RunColumns, epochs: Epochs, before: Run, epochs_before: Epochs) -> None:
    """Add to the rows of a damaged run what was read from its folder before."""
    for number, values in epochs_before.items():
        epochs.setdefault(number, values)
    for name in ("started_at", "finished_at", "attempt", "step", "machines", *_STARTED_FIELDS):
        setattr(run, name, getattr(run, name) or getattr(before, name))
    summarize(run, epochs)


def _row_of(folder: RunFolder, before: Run | None) -> RunColumns:
    """A row from run.json and config.json, before any event; of a damaged file the row before, else the defaults."""
    record = _fitting_record(folder, before)
    config = _fitting_config(folder, before)
    created_at = str(record.get("created_at", ""))
    return RunColumns(
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
        imported=before.imported if before is not None and folder.read_run() is None else folder.is_imported(),
        warnings=record.get("warnings", []),
        created_at=created_at,
        queued_at=record.get("queued_at", created_at),
        error=record.get("error"),
        attempt=record.get("after_attempt", 0),
    )


def _fitting_record(folder: RunFolder, before: Run | None) -> dict[str, Any]:
    try:
        return RunRecord.model_validate(folder.read_run()).model_dump(exclude_none=True)
    except ValidationError:
        return lifecycle.record_of(before) if before is not None else {}


def _fitting_config(folder: RunFolder, before: Run | None) -> RunConfig:
    """The config; of one that does not fit the fields that do, so that the run can be shown."""
    with contextlib.suppress(OSError, ValueError):
        return folder.read_config()
    if before is not None:
        return RunConfig(**before.config)
    values = read_json(folder.config_path) or {}
    config = RunConfig(dataset="unknown", model="fc")
    for name in set(values) & set(RunConfig.model_fields):
        with contextlib.suppress(ValidationError):
            config = RunConfig.model_validate(config.model_dump() | {name: values[name]})
    return config


def delete_rows(session: Session, run_ids: Sequence[str]) -> None:
    """Remove the rows of runs."""
    tables = SQLModel.metadata.tables
    for column in (tables["epoch"].c.run_id, tables["run"].c.id):
        session.connection().execute(delete(column.table).where(column.in_(run_ids)))
