"""Loads a comparison: its runs, their epochs and predictions, and the repeats of their recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sqlmodel import Session, col, select

from app.compare.comparison import compare
from app.compare.shapes import DEFAULT_MARGIN, ComparedRun, CompareError, Comparison
from app.errors import NotFound, Refused
from app.schemas import EpochOut
from app.store.epochs import epochs_of_runs
from app.store.predictions import Predictions, PredictionsError, load
from app.store.queries import runs_of_groups
from app.store.tables import Run
from trainer.config import FieldProblem
from trainer.i18n import _, ngettext
from trainer.run_folder import RunFolder

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
                "There is no run {ids}. It may have been deleted.",
                "There are no runs {ids}. They may have been deleted.",
                len(missing),
            ).format(ids=", ".join(missing))
        )
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


@dataclass(frozen=True)
class LoadedComparison:
    """A comparison with the runs, their epochs and their predictions that it was made of, all in one order."""

    runs: list[Run]
    epochs: list[list[EpochOut]]
    predictions: list[Predictions | None]  # None for a run without an epoch
    comparison: Comparison


def load_comparison(
    folder: Path,
    session: Session,
    shown: Sequence[Run],
    at: str = "last",
    base: str | None = None,
    margin: float = DEFAULT_MARGIN,
) -> LoadedComparison:
    """Compare runs and their recipes; ``folder`` holds the run folders. Raises ``Refused``, ``PredictionsError``."""
    epochs = epochs_of_runs(session, shown)
    compared = [_compared(folder, run, epoch_at(run, at), epochs[run.id]) for run in shown]
    repeats = _repeats(session, folder, compared, at)
    try:
        comparison = compare(compared, repeats, base=base, margin=margin, at=at)
    except CompareError as error:
        raise Refused(str(error)) from None
    predictions = [run.predictions for run in compared]
    return LoadedComparison(list(shown), [epochs[run.id] for run in shown], predictions, comparison)


def _compared(folder: Path, run: Run, epoch: int | None, epochs: Sequence[EpochOut]) -> ComparedRun:
    """A run shown, with its predictions and what it spent up to ``epoch``.

    Raises ``PredictionsError`` that names the run.
    """
    try:
        predictions = load(RunFolder(folder / run.id), epoch) if epoch else None
    except PredictionsError as error:
        raise type(error)(f"{run.name or run.id}: {error}") from None
    spent = next((row for row in epochs if row.epoch == epoch), None)
    return replace(
        _from_index(run),
        epoch=epoch,
        predictions=predictions,
        reported_correct=spent.reported_correct if spent else None,
        num_parameters=run.num_parameters,
        epochs_done=epoch or 0,
        images_seen=(epoch or 0) * (run.num_train or 0),
        train_seconds=spent.train_seconds if spent else 0.0,
    )


def _repeats(session: Session, folder: Path, shown: Sequence[ComparedRun], at: str) -> dict[str, list[ComparedRun]]:
    """All runs of the groups shown, the finished ones with their predictions unless these can't be read."""
    known = {(run.id, run.epoch): run for run in shown}
    # An unfinished run must not take its repeats back to its epoch, while another recipe is read at its end.
    ended = [run for run in shown if at != "last" or run.status == "finished"]
    epochs = {run.group: None for run in shown} | {run.group: run.epoch for run in reversed(ended)}
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs_of_groups(session, list(epochs)):
        wanted = run.best_epoch if at == "best" else _epoch_within(run, epochs[run.group])
        epoch = wanted if run.status == "finished" else None
        groups.setdefault(run.group, []).append(known.get((run.id, epoch)) or _repeat(folder, run, epoch))
    return groups


def _repeat(folder: Path, run: Run, epoch: int | None) -> ComparedRun:
    try:
        predictions = load(RunFolder(folder / run.id), epoch) if epoch else None
    except PredictionsError:
        predictions = None
    return replace(_from_index(run), epoch=epoch if predictions else None, predictions=predictions)


def _from_index(run: Run) -> ComparedRun:
    return ComparedRun(
        id=run.id,
        name=run.name,
        config=run.config,
        group=run.group,
        seed=run.seed,
        test_fingerprint=run.test_fingerprint or "",
        status=run.status,
        created_at=run.created_at,
        finished_at=run.finished_at,
        sweep=run.sweep,
    )


def _epoch_within(run: Run, epoch: int | None) -> int | None:
    """``epoch`` where the run has it, else its newest one."""
    return epoch if epoch and epoch <= run.epochs_done else run.epochs_done or None
