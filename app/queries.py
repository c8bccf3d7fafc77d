"""What pages and API read: rows as JSON, filters, files of a run, the inputs of a comparison. Writes nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, true
from sqlmodel import Session, col, select

from app import cost
from app.comparison import ComparedRun, CompareError, Comparison, compare
from app.errors import NotFound, Refused
from app.predictions import Predictions, PredictionsError, load
from app.schemas import EpochOut, FileOut, RunError, RunOut, RunProgress, StepList
from app.state import Runoff
from app.statistics import wilson_interval
from app.tables import STATUSES, Epoch, Run
from app.verdicts import DEFAULT_MARGIN
from trainer.config import FIELDS, FieldProblem
from trainer.i18n import N_, _, ngettext
from trainer.run_folder import RunFolder, iter_valid_events

SORTS: dict[str, Any] = {
    "created_at": Run.created_at, "started_at": Run.started_at, "finished_at": Run.finished_at, "name": Run.name,
    "status": Run.status, "dataset": Run.dataset, "model": Run.model, "num_parameters": Run.num_parameters,
    "epochs_done": Run.epochs_done, "test_accuracy": Run.test_accuracy, "test_loss": Run.test_loss,
    "train_accuracy": Run.train_accuracy, "train_loss": Run.train_loss, "best_test_accuracy": Run.best_test_accuracy,
    "train_seconds": Run.train_seconds, "images_per_second": Run.images_per_second,
}  # fmt: skip


_LONGEST_SEARCH = 500  # characters: each word is a condition, and SQLite's depth is limited


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
    column = SORTS.get(sort.removeprefix("-"))
    if column is None:
        message = _("Unknown sort. Known are: {names}; a minus before it turns it round.").format(
            names=", ".join(SORTS)
        )
        raise Refused.fields([FieldProblem(field="sort", message=message)])
    ordered = col(column).desc() if sort.startswith("-") else col(column).asc()
    return [ordered.nulls_last(), col(Run.created_at).desc(), col(Run.id)]


def conditions_of(wanted: RunFilter) -> list[ColumnElement[bool]]:
    if wanted.status and wanted.status not in STATUSES:
        message = _("Must be one of {names}. You typed {typed}.").format(
            names=", ".join(STATUSES), typed=wanted.status[:40]
        )
        raise Refused.fields([FieldProblem(field="status", message=message)])
    if wanted.q and len(wanted.q) > _LONGEST_SEARCH:
        message = _("At most {limit} characters can be searched for.").format(limit=_LONGEST_SEARCH)
        raise Refused.fields([FieldProblem(field="q", message=message)])
    conditions: list[Any] = [
        getattr(Run, name) == value
        for name in ("status", "dataset", "model", "group", "sweep")
        if (value := getattr(wanted, name))
    ]
    if wanted.archived is not None:
        conditions.append(col(Run.archived) == wanted.archived)
    if wanted.tag:
        conditions.append(_has_tag(wanted.tag))
    return conditions + [_matches(word) for word in (wanted.q or "").split()]


def _has_tag(tag: str) -> ColumnElement[bool]:
    tags = func.json_each(Run.tags).table_valued("value")
    return select(tags.c.value).where(tags.c.value == tag).exists()


def _matches(word: str) -> ColumnElement[bool]:
    """A word in name, notes, tags, id, model or data set; ``field=value`` compares a field of the config."""
    field, equals, value = word.partition("=")
    if equals and field in FIELDS:
        return _equal(func.json_extract(Run.config, f"$.{field}"), value)
    like = f"%{word.replace(chr(92), chr(92) * 2).replace('%', chr(92) + '%').replace('_', chr(92) + '_')}%"
    columns = (Run.name, Run.notes, Run.id, Run.model, Run.dataset)
    tags = func.json_each(Run.tags).table_valued("value")
    in_tags = select(tags.c.value).where(tags.c.value.like(like, escape="\\")).exists()
    return or_(*(col(column).like(like, escape="\\") for column in columns), in_tags)


def _equal(stored: Any, value: str) -> ColumnElement[bool]:
    """Whether a JSON value equals what was typed: numbers as numbers, true and false as SQLite's 1 and 0, else text."""
    if value in ("true", "false"):
        return and_(stored == int(value == "true"))
    try:
        return and_(stored == float(value))
    except ValueError:
        return and_(stored.is_(None)) if value == "null" else and_(stored == value)


def get_run(session: Session, run_id: str) -> Run:
    """One run. Raises ``NotFound``."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound(_("There is no run {id}. It may have been deleted.").format(id=run_id[:40]))
    return run


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
            "progress": progress_of(run) if run.status == "running" else None,
        }
    )


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


def status_counts(session: Session, *, archived: bool | None = False) -> dict[str, int]:
    """How many runs have each status; every status is there."""
    query = select(Run.status, func.count()).group_by(Run.status)
    if archived is not None:
        query = query.where(col(Run.archived) == archived)
    return dict.fromkeys(STATUSES, 0) | dict(session.exec(query).all())


def distinct_values(session: Session) -> dict[str, list[str]]:
    """What there is to filter by."""
    tags = func.json_each(Run.tags).table_valued("value")
    return {
        "datasets": sorted(session.exec(select(Run.dataset).distinct()).all()),
        "models": sorted(session.exec(select(Run.model).distinct()).all()),
        "tags": sorted(session.exec(select(tags.c.value).select_from(Run).join(tags, true()).distinct()).all()),
    }


def data_version(session: Session) -> str:
    """Changes whenever any run changes, comes or goes; never with the clock."""
    version, count = session.exec(select(func.max(Run.version), func.count())).one()
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
    points = _thin(sorted(losses.items()), max_points)
    return StepList(steps=[step for step, _loss in points], losses=[loss for _step, loss in points])


def _thin(points: list[tuple[int, float]], max_points: int) -> list[tuple[int, float]]:
    """At most ``max_points`` points: the lowest and highest of each stretch of equal length, and both ends."""
    if len(points) <= max_points:
        return points
    stretches = max((max_points - 2) // 2, 1)
    inner, kept = points[1:-1], [points[0]]
    for number in range(stretches):
        part = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        if part:
            kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return [*kept, points[-1]][:max_points]


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


# Comparing -----------------------------------------------------------------------------------------------------------

MAX_COMPARED = 50


def runs_to_compare(session: Session, run_ids: Sequence[str]) -> list[Run]:
    """The runs of a comparison in URL order, each once. Raises ``NotFound`` that names those that don't exist."""
    ids = list(dict.fromkeys(run_ids))
    if len(ids) > MAX_COMPARED:
        message = _("At most {limit} runs can be compared at once. Choose fewer.").format(limit=MAX_COMPARED)
        raise Refused.fields([FieldProblem(field="run", message=message)])
    found = {run.id: run for run in session.exec(select(Run).where(col(Run.id).in_(ids))).all()}
    missing = [run_id[:40] for run_id in ids if run_id not in found]
    if missing:
        raise NotFound(
            ngettext(
                "There is no run {ids}. It may have been deleted.", "There are no runs {ids}. They may have been deleted.",
                len(missing),
            ).format(ids=", ".join(missing))
        )  # fmt: skip
    return [found[run_id] for run_id in ids]


def epoch_at(run: Run, at: str) -> int | None:
    """The epoch that ``at`` (last, best or a number) means for the run; None before it has one. Raises ``Refused``."""
    if at == "last":
        return run.epochs_done or None
    if at == "best":
        return run.best_epoch
    if at.isascii() and at.isdigit() and 0 < int(at[:9]) <= run.epochs_done:
        return int(at)
    if at.isascii() and at.isdigit() and not run.epochs_done:
        return None
    message = _("Must be last, best or an epoch that every run has; {name} has {count}. You typed {typed}.").format(
        name=run.name, count=run.epochs_done, typed=at[:20]
    )
    raise Refused.fields([FieldProblem(field="at", message=message)])


def compared_run(session: Session, runs: Path, run: Run, epoch: int | None, *, shown: bool = True) -> ComparedRun:
    """The run with its answers and its spending up to ``epoch``. A repeat that is not ``shown`` may lack its answers."""
    answers, seconds = None, 0.0
    if epoch:
        try:
            answers = load(RunFolder(runs / run.id), epoch)
        except PredictionsError:
            if shown:
                raise
        spent = select(func.sum(Epoch.seconds)).where(Epoch.run_id == run.id, col(Epoch.epoch) <= epoch)
        seconds = session.exec(spent).one() or 0.0
    return ComparedRun(
        id=run.id, name=run.name, config=run.config, group=run.group, seed=run.seed, epoch=epoch if answers else None,
        test_fingerprint=run.test_fingerprint or "", status=run.status, finished_at=run.finished_at,
        labels=answers.labels if answers else None, predicted=answers.predicted if answers else None,
        confidence=answers.confidence if answers else None, num_parameters=run.num_parameters,
        epochs_done=epoch or 0, images_seen=(epoch or 0) * (run.num_train or 0), train_seconds=seconds,
    )  # fmt: skip


def load_comparison(
    state: Runoff, session: Session, run_ids: Sequence[str], at: str = "last", base: str | None = None,
    margin: float = DEFAULT_MARGIN,
) -> Comparison:  # fmt: skip
    """Compare runs and their recipes. Raises ``NotFound``, ``Refused``, ``PredictionsError``."""
    shown = runs_to_compare(session, run_ids)
    folder = state.settings.runs
    compared = [compared_run(session, folder, run, epoch_at(run, at)) for run in shown]
    epochs = {run.group: run.epoch for run in reversed(compared)}
    members = session.exec(select(Run).where(col(Run.group).in_(epochs)).order_by(col(Run.created_at))).all()
    groups: dict[str, list[ComparedRun]] = {}
    for run in members:
        wanted = run.best_epoch if at == "best" else _epoch_within(run, epochs[run.group])
        counts = wanted if run.status == "finished" else None
        groups.setdefault(run.group, []).append(compared_run(session, folder, run, counts, shown=False))
    try:
        return compare(compared, groups, base=base, margin=margin, at=at)
    except CompareError as error:
        raise Refused(str(error)) from None


def _epoch_within(run: Run, epoch: int | None) -> int | None:
    """``epoch`` where the run has it, else its newest one."""
    return epoch if epoch and epoch <= run.epochs_done else run.epochs_done or None
