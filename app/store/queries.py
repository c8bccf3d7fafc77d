"""What pages and API read: rows as JSON, filters, files of a run. Writes nothing."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, String, func, type_coerce
from sqlmodel import Session, col, select

from app.errors import NotFound, Refused
from app.schemas import EpochOut, FileOut, RunError, RunOut, RunProgress, StepList
from app.statistics import wilson_interval
from app.store import epochs as cost
from app.store import search
from app.store.predictions import Predictions, defect_of, load
from app.store.tables import STATUSES, Epoch, Run
from app.store.thinning import thin
from trainer.config import FieldProblem
from trainer.i18n import N_, _
from trainer.run_folder import RunFolder, iter_valid_events


@dataclass(frozen=True)
class RunFilter:
    """Which runs, in which order. ``archived`` None means both."""

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
    """The runs of one page and the number of all that match. Raises ``Refused`` for an unknown sort or status."""
    conditions = conditions_of(wanted)
    total = session.exec(select(func.count()).select_from(Run).where(*conditions)).one()
    query = select(Run).where(*conditions).order_by(*order_of(wanted.sort)).limit(wanted.limit).offset(wanted.offset)
    return list(session.exec(query).all()), total


def order_of(sort: str) -> list[Any]:
    """What to order by: any field but the tags, what is missing last. Raises ``Refused`` for an unknown one."""
    name = sort.removeprefix("-")
    field = search.fields().get(name)
    if field is None or field.kind == "tags":
        raise Refused.fields([FieldProblem(field="sort", message=search.unknown_field(name))])
    ordered = field.column.desc() if sort.startswith("-") else field.column.asc()
    newest_first = [col(Run.created_at).desc()] if name != "created_at" else []
    return [ordered.nulls_last(), *newest_first, col(Run.id)]


def conditions_of(wanted: RunFilter) -> list[ColumnElement[bool]]:
    """What a run must be. Raises ``Refused`` for an unknown status and an expression that can't be read."""
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
        found = search.condition(wanted.q or "")
    except search.SearchError as error:
        raise Refused.fields([FieldProblem(field="q", message=str(error))]) from None
    return conditions if found is None else [*conditions, found]


def get_run(session: Session, run_id: str) -> Run:
    """One run. Raises ``NotFound``."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound(_("There is no run {id}. It may have been deleted.").format(id=run_id[:40]))
    return run


def sweep_runs(session: Session, sweep_id: str) -> list[Run]:
    """The runs of a sweep in the order in which they were to start. Raises ``NotFound``."""
    order = (col(Run.created_at), col(Run.id))
    found = list(session.exec(select(Run).where(Run.sweep == sweep_id).order_by(*order)).all())
    if not found:
        raise NotFound(_("There is no sweep {id}. Its runs may have been deleted.").format(id=sweep_id[:40]))
    return found


def runs_of_groups(session: Session, groups: Sequence[str]) -> list[Run]:
    """All repeats of several groups, oldest first."""
    return list(session.exec(select(Run).where(col(Run.group).in_(groups)).order_by(col(Run.created_at))).all())


def run_out(run: Run) -> RunOut:
    """The run as the API shows it."""
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
    """What the index found wrong with the answers of the run, as a sentence; "" where nothing is."""
    return defect_of(**run.defect) if run.defect else ""


def progress_of(run: Run) -> RunProgress:
    per_epoch = run.steps_per_epoch or 1
    epoch = min(max(run.step - 1, 0) // per_epoch + 1, run.epochs)
    if run.step and run.epochs_done * per_epoch >= run.step:
        epoch = min(run.epochs_done + 1, run.epochs)
    return RunProgress(
        step=run.step, total_steps=run.total_steps, epoch=epoch, seconds_left=run.seconds_left, phase=run.phase,
        fraction=run.step / run.total_steps if run.total_steps else 0.0, updated_at=run.updated_at,
    )  # fmt: skip


def epochs_of(session: Session, run_id: str) -> list[Epoch]:
    """The epochs of a run in order."""
    return list(session.exec(select(Epoch).where(Epoch.run_id == run_id).order_by(col(Epoch.epoch))).all())


def epochs_out(session: Session, run: Run) -> list[EpochOut]:
    """The epochs of a run as the API shows them, with their sums."""
    return cost.epochs_out(epochs_of(session, run.id), run.num_train)


def epochs_of_runs(session: Session, runs: Sequence[Run]) -> dict[str, list[EpochOut]]:
    """The epochs of several runs with their sums, by one query: run id -> epochs in order."""
    table = Epoch.__table__  # type: ignore[attr-defined]  # plain rows: thousands of objects would take most of the time
    query = table.select().where(table.c.run_id.in_([run.id for run in runs])).order_by(table.c.epoch)
    found: dict[str, list[Any]] = {run.id: [] for run in runs}
    for epoch in session.connection().execute(query):
        found[epoch.run_id].append(epoch)
    return {run.id: cost.epochs_out(found[run.id], run.num_train) for run in runs}


def status_counts(session: Session, *, archived: bool | None = False) -> dict[str, int]:
    """How many runs have each status; every status is there."""
    query = select(Run.status, func.count()).group_by(Run.status)
    if archived is not None:
        query = query.where(col(Run.archived) == archived)
    return dict.fromkeys(STATUSES, 0) | dict(session.exec(query).all())


def counts_by_archived(session: Session) -> dict[bool, dict[str, int]]:
    """How many runs have each status, apart for archived ones; every status is there."""
    query = select(Run.archived, Run.status, func.count()).group_by(col(Run.archived), col(Run.status))
    found = {is_archived: dict.fromkeys(STATUSES, 0) for is_archived in (False, True)}
    for is_archived, status, count in session.exec(query).all():
        found[is_archived][status] = count
    return found


def distinct_values(session: Session) -> dict[str, list[str]]:
    """What there is to filter by."""
    lists = session.exec(select(type_coerce(col(Run.tags), String)).distinct()).all()  # few, where there are many runs
    return {
        "datasets": sorted(session.exec(select(Run.dataset).distinct()).all()),
        "models": sorted(session.exec(select(Run.model).distinct()).all()),
        "tags": sorted({tag for text in lists for tag in json.loads(text)}),
    }


def data_version(session: Session) -> str:
    """Changes whenever any run changes, comes or goes; never with the clock."""
    newest = select(func.max(Run.version)).scalar_subquery()  # apart: each is answered by an index alone
    version, count = session.exec(select(newest, select(func.count()).select_from(Run).scalar_subquery())).one()
    return f"{version or 0}.{count}"


# Files of a run ------------------------------------------------------------------------------------------------------

FILES: dict[str, str] = {
    "config.json": N_("every choice of the run"),
    "run.json": N_("name, tags, notes"),
    "environment.json": N_("versions, device, fingerprints of the data"),
    "events.jsonl": N_("all that happened, in order"),
    "epochs.csv": N_("the numbers of every epoch"),
    "log.txt": N_("what the run printed"),
    "checkpoint-best.safetensors": N_("weights of the best epoch"),
    "checkpoint-last.safetensors": N_("weights and optimizer of the newest epoch, to go on from"),
    "predictions-last.safetensors": N_("answers for every test image after the newest epoch"),
    "labels.npy": N_("true classes of the test images"),
    "train.png": N_("training images as the net sees them"),
}


def file_path(folder: RunFolder, name: str, run: Run) -> Path | None:
    """Where a downloadable file lies; None for a name outside the table. ``epochs.csv`` is made on request."""
    if name not in FILES:
        return None
    last, best = run.epochs_done, run.best_epoch or 0
    return {
        "checkpoint-best.safetensors": folder.checkpoint_path(best),
        "checkpoint-last.safetensors": folder.checkpoint_path(last),
        "predictions-last.safetensors": folder.predictions_path(last),
        "labels.npy": folder.labels_path,
        "train.png": folder.pictures / "train.png",
    }.get(name, folder.path / name)


def files_of(session: Session, folder: RunFolder, run: Run) -> list[FileOut]:
    """The files that can be downloaded now."""
    files = []
    for name, description in FILES.items():
        if name == "epochs.csv":
            size = len(epochs_csv(epochs_of(session, run.id)))
        else:
            path = file_path(folder, name, run)
            size = path.stat().st_size if path and path.is_file() else 0
        if size:
            files.append(FileOut(name=name, size=size, description=_(description)))
    return files


def epochs_csv(epochs: Sequence[Epoch]) -> bytes:
    """The epochs as CSV with a header line; empty without epochs."""
    if not epochs:
        return b""
    columns = [name for name in Epoch.model_fields if name != "run_id"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([getattr(epoch, name) for name in columns] for epoch in epochs)
    return text.getvalue().encode()


def steps_of(folder: RunFolder, max_points: int = 1000) -> StepList:
    """Step losses of a run, a later attempt's step in place of an earlier one's, thinned with the extremes kept."""
    losses: dict[int, float] = {}
    for event, _end in iter_valid_events(folder.events_path):
        if event["type"] == "started":
            first = (event["first_epoch"] - 1) * event["steps_per_epoch"]
            losses = {step: loss for step, loss in losses.items() if step <= first}
        elif event["type"] == "step":
            losses.update((int(step), loss) for step, loss in event["losses"])
    steps = sorted(losses)
    kept = [steps[i] for i in thin([losses[step] for step in steps], max_points)]
    return StepList(steps=kept, losses=[losses[step] for step in kept])


def log_tail(folder: RunFolder, max_bytes: int = 64_000) -> str:
    """The end of the log, from the beginning of a line."""
    try:
        with folder.log_path.open("rb") as file:
            file.seek(0, io.SEEK_END)
            start = max(file.tell() - max_bytes, 0)
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return ""
    if start:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", errors="replace")


# Answers -------------------------------------------------------------------------------------------------------------


def predictions_of(runs: Path, run: Run, epoch: int | None = None) -> Predictions:
    """What the run answered after ``epoch`` (the newest when None). Raises ``NotFound`` where there are no answers."""
    if not run.epochs_done:
        raise NotFound(
            _("{name} has no finished epoch yet, so there are no answers. Wait for its first epoch.").format(
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


def defect_of_answers(session: Session, run: Run, epoch: int | None, answers: Predictions) -> str:
    """A sentence where the answers do not give the count in the run's log, else ""."""
    epoch = epoch or run.epochs_done
    reported = func.coalesce(Epoch.logged_correct, Epoch.test_correct)
    found = session.exec(select(reported).where(Epoch.run_id == run.id, Epoch.epoch == epoch)).first()
    return defect_of(epoch, answers.num_correct, answers.num_images, found)
