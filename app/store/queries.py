"""Queries for runs: those that match a filter, counts, the version of the data, and runs as the API returns them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, String, func, type_coerce
from sqlmodel import Session, col, select

from app.errors import NotFound, Refused
from app.schemas import RunError, RunOut, RunProgress
from app.statistics import wilson_interval
from app.store import search
from app.store.fields import fields, unknown_field
from app.store.predictions import Predictions, defect_of, load
from app.store.tables import STATUSES, Epoch, Run
from trainer.config import FieldProblem
from trainer.i18n import _
from trainer.run_folder import RunFolder

# Runs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFilter:
    """Filter, order and page of a list of runs. ``archived`` None means both archived and other runs."""

    status: str | None = None
    dataset: str | None = None
    model: str | None = None
    tag: str | None = None
    group: str | None = None
    sweep: str | None = None
    q: str | None = None
    archived: bool | None = False
    sort: str = "-created_at"
    limit: int = 100
    offset: int = 0


def find_runs(session: Session, wanted: RunFilter) -> tuple[list[Run], int]:
    """The runs of one page, and the number of all that match. Raises ``Refused`` for an unknown sort or status."""
    conditions = conditions_of(wanted)
    total = session.exec(select(func.count()).select_from(Run).where(*conditions)).one()
    query = select(Run).where(*conditions).order_by(*order_of(wanted.sort)).limit(wanted.limit).offset(wanted.offset)
    return list(session.exec(query).all()), total


def order_of(sort: str) -> list[Any]:
    """The ORDER BY for ``sort``, any field except tags. Missing values come last. Raises ``Refused``."""
    name = sort.removeprefix("-")
    field = fields().get(name)
    if field is None or field.kind == "tags":
        raise Refused.fields([FieldProblem(field="sort", message=unknown_field(name))])
    ordered = field.column.desc() if sort.startswith("-") else field.column.asc()
    newest_first = [col(Run.created_at).desc()] if name != "created_at" else []
    return [ordered.nulls_last(), *newest_first, col(Run.id)]


def conditions_of(wanted: RunFilter) -> list[ColumnElement[bool]]:
    """The WHERE for a filter. Raises ``Refused`` for an unknown status or an invalid search expression."""
    if wanted.status and wanted.status not in STATUSES:
        message = _("Must be one of {names}. You typed {typed}.").format(
            names=", ".join(STATUSES), typed=wanted.status[:40]
        )
        raise Refused.fields([FieldProblem(field="status", message=message)])
    conditions: list[Any] = [
        getattr(Run, name) == value
        for name in ("status", "dataset", "model", "group", "sweep")
        if (value := getattr(wanted, name))
    ]
    if wanted.archived is not None:
        conditions.append(col(Run.archived) == wanted.archived)
    if wanted.tag:
        conditions.append(search.has_tag(wanted.tag))
    try:
        searched = search.condition(wanted.q or "")
    except search.SearchError as error:
        raise Refused.fields([FieldProblem(field="q", message=str(error))]) from None
    return conditions if searched is None else [*conditions, searched]


def get_run(session: Session, run_id: str) -> Run:
    """The run with this id. Raises ``NotFound``."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound(_("There is no run {id}. It may have been deleted.").format(id=run_id[:40]))
    return run


def sweep_runs(session: Session, sweep_id: str) -> list[Run]:
    """The runs of a sweep in the order of their planned start. Raises ``NotFound``."""
    order = (col(Run.created_at), col(Run.id))
    runs = list(session.exec(select(Run).where(Run.sweep == sweep_id).order_by(*order)).all())
    if not runs:
        raise NotFound(_("There is no sweep {id}. Its runs may have been deleted.").format(id=sweep_id[:40]))
    return runs


def runs_of_groups(session: Session, groups: Sequence[str]) -> list[Run]:
    """All repeats of several groups, oldest first."""
    return list(session.exec(select(Run).where(col(Run.group).in_(groups)).order_by(col(Run.created_at))).all())


# A run as the API shows it -------------------------------------------------------------------------------------------


def run_out(run: Run) -> RunOut:
    """The run as the API returns it."""
    interval = None
    if run.test_correct is not None and run.test_total:
        interval = [round(float(x), 6) for x in wilson_interval(run.test_correct, run.test_total)]
    fields = {name: getattr(run, name) for name in RunOut.model_fields if hasattr(run, name)}
    return RunOut(
        **{
            **fields,
            "test_accuracy_interval": interval,
            "images": run.num_train and run.num_train * run.epochs_done,
            "best_is_optimistic": run.best_epoch is not None and run.validation_accuracy is None,
            "error": RunError(**run.error) if run.error else None,
            "defect": stored_defect(run),
            "progress": progress_of(run) if run.status == "running" else None,
        }
    )


def stored_defect(run: Run) -> str:
    """A message if the stored predictions of a run contradict its log, else ""."""
    return defect_of(**run.defect) if run.defect else ""


def progress_of(run: Run) -> RunProgress:
    """The progress of a running run."""
    per_epoch = run.steps_per_epoch or 1
    epoch = min(max(run.step - 1, 0) // per_epoch + 1, run.epochs)
    if run.step and run.epochs_done * per_epoch >= run.step:
        epoch = min(run.epochs_done + 1, run.epochs)
    return RunProgress(
        step=run.step,
        total_steps=run.total_steps,
        epoch=epoch,
        fraction=run.step / run.total_steps if run.total_steps else 0.0,
        seconds_left=run.seconds_left,
        updated_at=run.updated_at,
        phase=run.phase,
    )


# All runs ------------------------------------------------------------------------------------------------------------


def status_counts(session: Session, *, archived: bool | None = False) -> dict[str, int]:
    """The number of runs with each status, zeros included."""
    query = select(Run.status, func.count()).group_by(Run.status)
    if archived is not None:
        query = query.where(col(Run.archived) == archived)
    return dict.fromkeys(STATUSES, 0) | dict(session.exec(query).all())


def counts_by_archived(session: Session) -> dict[bool, dict[str, int]]:
    """The number of runs with each status, zeros included: whether archived -> status -> number."""
    query = select(Run.archived, Run.status, func.count()).group_by(col(Run.archived), col(Run.status))
    counts = {is_archived: dict.fromkeys(STATUSES, 0) for is_archived in (False, True)}
    for is_archived, status, count in session.exec(query).all():
        counts[is_archived][status] = count
    return counts


def distinct_values(session: Session) -> dict[str, list[str]]:
    """The data sets, models and tags of all runs, to filter by."""
    lists = session.exec(select(type_coerce(col(Run.tags), String)).distinct()).all()  # far fewer than runs
    return {
        "datasets": sorted(session.exec(select(Run.dataset).distinct()).all()),
        "models": sorted(session.exec(select(Run.model).distinct()).all()),
        "tags": sorted({tag for text in lists for tag in json.loads(text)}),
    }


def data_version(session: Session) -> str:
    """A version of the data: it changes if and only if a run is added, changed or removed."""
    newest = select(func.max(Run.version)).scalar_subquery()  # separate queries: each one needs only an index
    version, count = session.exec(select(newest, select(func.count()).select_from(Run).scalar_subquery())).one()
    return f"{version or 0}.{count}"


def next_version(session: Session) -> int:
    """The version number for the next change of any run; conditional requests compare it.

    It is at least the time in milliseconds, so a number is not reused after the run with the highest one is deleted.
    """
    return max((session.exec(select(func.max(Run.version))).one() or 0) + 1, time.time_ns() // 1_000_000)


# Predictions ---------------------------------------------------------------------------------------------------------


def predictions_of(runs: Path, run: Run, epoch: int | None = None) -> Predictions:
    """The predictions of a run after ``epoch`` (None: the latest). Raises ``NotFound`` if there are none."""
    if not run.epochs_done:
        raise NotFound(
            _("{name} has no finished epoch yet, so there are no predictions. Wait for its first epoch.").format(
                name=run.name
            )
        )
    epoch = epoch or run.epochs_done
    if epoch > run.epochs_done:
        message = _("{name} has {count} epochs so far. Choose one of these.").format(
            name=run.name, count=run.epochs_done
        )
        raise NotFound(message)
    return load(RunFolder(runs / run.id), epoch)


def defect_of_predictions(session: Session, run: Run, epoch: int | None, predictions: Predictions) -> str:
    """A message if ``predictions`` contradict the count in the run's log, else ""."""
    epoch = epoch or run.epochs_done
    column = func.coalesce(Epoch.logged_correct, Epoch.test_correct)
    reported = session.exec(select(column).where(Epoch.run_id == run.id, Epoch.epoch == epoch)).first()
    return defect_of(epoch, predictions.num_correct, predictions.num_images, reported)
