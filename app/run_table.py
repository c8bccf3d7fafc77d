"""The rows of the runs page: which runs match, repeats folded into one row, what a row shows. No HTML, no writes."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from app import queries
from app.drawings import Scale, scale_of
from app.queries import RunFilter, conditions_of, order_of, progress_of
from app.schemas import RunProgress
from app.statistics import t_interval, wilson_interval
from app.tables import ENDED, STATUSES, Epoch, Run
from app.templating import remaining
from trainer.i18n import N_, _, ngettext
from trainer.run_folder import RunFolder

PAGE_SIZE = 100  # rows; a group counts as one
SPARK_POINTS = 44
_ENOUGH_EPOCHS = 12  # from here on the sparkline is drawn from epochs, not from steps
Interval = tuple[float, float]

FAILURES = {
    "DatasetMissing": N_("Data set missing."),
    "DatasetError": N_("Data set missing."),
    "DatasetChanged": N_("Data set changed."),
    "NonFiniteLoss": N_("Loss became NaN."),
    "OutOfMemory": N_("Out of memory."),
    "DiskFull": N_("Disk full."),
    "DeviceMissing": N_("Device missing."),
    "PrecisionUnsupported": N_("Precision not supported."),
    "ProcessVanished": N_("Process vanished."),
}


@dataclass(frozen=True)
class RunRow:
    """One run."""

    run: Run
    interval: Interval | None
    losses: list[float]
    progress: RunProgress | None
    left: float | None  # seconds until the end, now
    waiting: str  # of a queued run: its place in the queue
    is_child: bool = False

    is_group = False

    @property
    def ids(self) -> list[str]:
        return [self.run.id]

    @property
    def comparable(self) -> list[str]:
        return [self.run.id] if self.run.epochs_done else []

    @property
    def name(self) -> str:
        return self.run.name or self.run.id

    @property
    def has_ended(self) -> bool:
        return self.run.status in ENDED

    @property
    def nothing_measured(self) -> str:
        """Why there is no accuracy, where that is final."""
        if self.run.test_accuracy is not None or not self.has_ended:
            return ""
        if self.run.status == "cancelled" and self.run.started_at is None:
            return _("cancelled while waiting")
        return _("none: no epoch ended")

    @property
    def failure(self) -> tuple[str, str]:
        """Of a failed run: two or three words, then what happened and what to do."""
        error = self.run.error or {}
        title = FAILURES.get(str(error.get("error")), "")
        sentence = f"{error.get('message', '')} {error.get('advice', '')}".strip()
        return (_(title), sentence) if title else (_("Failed."), sentence)

    @property
    def is_missing_dataset(self) -> bool:
        return (self.run.error or {}).get("error") in ("DatasetMissing", "DatasetError")


@dataclass(frozen=True)
class GroupRow:
    """Repeats of one config as one row: mean and interval over seeds. ``members`` are in the order of the table."""

    group: str
    members: list[RunRow]
    is_open: bool

    is_group = True

    @property
    def run(self) -> Run:
        return self.members[0].run

    @property
    def ids(self) -> list[str]:
        return [row.run.id for row in self.members]

    @property
    def comparable(self) -> list[str]:
        return [row.run.id for row in self.members if row.run.epochs_done]

    @property
    def name(self) -> str:
        return _without_seed(self.run.name) or f"{self.run.model}, {self.run.dataset}"

    @property
    def has_ended(self) -> bool:
        return all(row.has_ended for row in self.members)

    @property
    def seeds(self) -> str:
        """``seeds 0 to 4``, or all of them where some are missing."""
        seeds = sorted({row.run.seed for row in self.members})
        if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
            return _("seeds {first} to {last}").format(first=seeds[0], last=seeds[-1])
        shown = ", ".join(str(seed) for seed in seeds[:6]) + (" …" if len(seeds) > 6 else "")
        return _("seeds {seeds}").format(seeds=shown)

    @property
    def repeats(self) -> str:
        return ngettext("{n} repeat", "{n} repeats", len(self.members)).format(n=len(self.members))

    @property
    def tags(self) -> list[str]:
        """Tags of all members."""
        return [tag for tag in self.run.tags if all(tag in row.run.tags for row in self.members)]

    @property
    def num_running(self) -> int:
        return sum(row.run.status == "running" for row in self.members)

    @property
    def num_finished(self) -> int:
        return sum(row.run.status == "finished" for row in self.members)

    @property
    def fraction(self) -> float:
        """Of the whole group's work, 0..1."""
        done = sum(1.0 if row.has_ended else row.progress.fraction if row.progress else 0.0 for row in self.members)
        return done / len(self.members)

    @property
    def states(self) -> str:
        """``3 of 5 finished, 1 failed``: nothing where all are finished."""
        counts = Counter(row.run.status for row in self.members)
        if counts["finished"] == len(self.members):
            return ""
        words = {"running": _("running"), "queued": _("queued"), "failed": _("failed"), "cancelled": _("cancelled")}
        parts = [_("{n} of {total} finished").format(n=counts["finished"], total=len(self.members))]
        parts += [f"{counts[status]} {words[status]}" for status in STATUSES if status in words and counts[status]]
        return ", ".join(parts)

    @property
    def measured(self) -> list[RunRow]:
        """The newest finished run of each seed: what the mean is over."""
        newest: dict[int, RunRow] = {}
        for row in self.members:
            other = newest.get(row.run.seed)
            if row.run.status == "finished" and (other is None or row.run.created_at > other.run.created_at):
                newest[row.run.seed] = row
        return [row for row in newest.values() if row.run.test_accuracy is not None]

    @property
    def accuracies(self) -> list[float]:
        return [row.run.test_accuracy for row in self.measured if row.run.test_accuracy is not None]

    @property
    def mean(self) -> float | None:
        values = self.accuracies
        return sum(values) / len(values) if values else None

    @property
    def interval(self) -> Interval | None:
        """95 % t interval of the mean over seeds; of a single seed its own."""
        values = self.accuracies
        if len(values) < 2:
            return self.measured[0].interval if values else None
        low, high = t_interval(values)
        return max(0.0, low), min(1.0, high)

    @property
    def best(self) -> Run | None:
        """The member with the highest accuracy after its last epoch."""
        return max((row.run for row in self.measured), key=lambda run: run.test_accuracy or 0, default=None)

    @property
    def train_seconds(self) -> float:
        return sum(row.run.train_seconds for row in self.members)

    @property
    def images_per_second(self) -> float | None:
        images = sum((row.run.num_train or 0) * row.run.epochs_done for row in self.members)
        return images / self.train_seconds if images and self.train_seconds else None


Row = RunRow | GroupRow


@dataclass(frozen=True)
class RunTable:
    """One page of rows and what stands around it."""

    rows: list[Row]
    scale: Scale
    counts: dict[str, int]  # of each status, under the other filters
    num_matching: int  # runs
    num_rows: int  # on all pages
    num_newer: int  # runs that came after ``until``
    until: str  # when the newest run shown was made


@dataclass(frozen=True)
class _Light:
    """As much of a run as folding and paging need."""

    id: str
    group: str
    seed: int
    status: str
    created_at: str


def load_table(
    session: Session,
    runs_folder: Path,
    wanted: RunFilter,
    *,
    fold: bool = True,
    open_groups: Iterable[str] = (),
    page: int = 1,
    until: str | None = None,
) -> RunTable:
    """The rows of page ``page``. With ``until`` only runs made up to that time, and the number of newer ones.

    Raises ``Refused`` for an unknown status or sort.
    """
    conditions_of(wanted)  # refuses an unknown status
    everything = _light_rows(session, replace(wanted, status=None))
    counts = Counter(row.status for row in everything)
    matching = [row for row in everything if not wanted.status or row.status == wanted.status]
    shown = [row for row in matching if not until or row.created_at <= until]
    units = _fold(shown) if fold else [[row] for row in shown]
    on_page = units[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    made = _make_rows(session, runs_folder, [row.id for unit in on_page for row in unit])
    rows = [_row(unit, made, set(open_groups)) for unit in on_page if all(light.id in made for light in unit)]
    return RunTable(
        rows=rows,
        scale=scale_of([row.interval for row in _spread(rows) if row.interval]),
        counts={status: counts[status] for status in STATUSES},
        num_matching=len(shown),
        num_rows=len(units),
        num_newer=len(matching) - len(shown),
        until=until or max((row.created_at for row in matching), default=""),
    )


def _light_rows(session: Session, wanted: RunFilter) -> list[_Light]:
    query = (
        select_columns(col(Run.id), col(Run.group), col(Run.seed), col(Run.status), col(Run.created_at))
        .where(*conditions_of(wanted))
        .order_by(*order_of(wanted.sort))
    )
    return [_Light(*row) for row in session.connection().execute(query).all()]


def _fold(rows: Sequence[_Light]) -> list[list[_Light]]:
    """Runs of one group with two or more seeds together, at the place of the first of them."""
    groups: dict[str, list[_Light]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    folded = {group for group, members in groups.items() if len({row.seed for row in members}) > 1}
    units: list[list[_Light]] = []
    for row in rows:
        if row.group not in folded:
            units.append([row])
        elif row is groups[row.group][0]:
            units.append(groups[row.group])
    return units


def _row(unit: Sequence[_Light], made: dict[str, RunRow], open_groups: set[str]) -> Row:
    if len(unit) == 1:
        return made[unit[0].id]
    members = [replace(made[light.id], is_child=True) for light in unit]
    return GroupRow(unit[0].group, sorted(members, key=lambda row: row.run.seed), unit[0].group in open_groups)


def _spread(rows: Iterable[Row]) -> Iterable[Row]:
    """All rows, and the members of groups."""
    for row in rows:
        yield row
        if isinstance(row, GroupRow):
            yield from row.members


def _make_rows(session: Session, runs_folder: Path, ids: Sequence[str]) -> dict[str, RunRow]:
    runs = [run for part in _chunks(ids) for run in session.exec(select(Run).where(col(Run.id).in_(part))).all()]
    losses = _losses_of(session, runs_folder, runs)
    places = _places_in_queue(session) if any(run.status == "queued" for run in runs) else {}
    return {
        run.id: _run_row(run, interval, losses.get(run.id, []), places.get(run.id, ""))
        for run, interval in zip(runs, _intervals_of(runs), strict=True)
    }


def _run_row(run: Run, interval: Interval | None, losses: list[float], waiting: str) -> RunRow:
    progress = progress_of(run) if run.status == "running" else None
    left = remaining(progress.seconds_left, progress.updated_at) if progress else None
    return RunRow(run, interval, losses, progress, left, waiting)


def _chunks(ids: Sequence[str], size: int = 500) -> Iterable[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _intervals_of(runs: Sequence[Run]) -> list[Interval | None]:
    low, high = wilson_interval([run.test_correct or 0 for run in runs], [run.test_total or 0 for run in runs])
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return [pair if run.test_total else None for run, pair in zip(runs, pairs, strict=True)]


def _places_in_queue(session: Session) -> dict[str, str]:
    """For each queued run, when its turn comes, in words."""
    order = (col(Run.queued_at), col(Run.created_at), col(Run.seed), col(Run.id))
    queued = session.exec(select(Run.id).where(Run.status == "queued").order_by(*order)).all()
    running = session.exec(select(Run.seconds_left, Run.updated_at).where(Run.status == "running")).all()
    waits = [left for seconds, at in running if (left := remaining(seconds, at)) is not None]
    words = {run_id: _("waiting, {n} before it").format(n=place) for place, run_id in enumerate(queued)}
    if queued:
        words[queued[0]] = _("next, in about {seconds} s").format(seconds=round(min(waits))) if waits else _("next")
    return words


# Sparklines ----------------------------------------------------------------------------------------------------------


def _losses_of(session: Session, runs_folder: Path, runs: Sequence[Run]) -> dict[str, list[float]]:
    """Training losses of each run: of epochs where there are enough, else of steps."""
    long = [run.id for run in runs if run.epochs_done >= _ENOUGH_EPOCHS]
    losses: dict[str, list[float]] = defaultdict(list)
    for part in _chunks(long):
        query = select(Epoch.run_id, Epoch.train_loss).where(col(Epoch.run_id).in_(part)).order_by(col(Epoch.epoch))
        for run_id, loss in session.exec(query).all():
            losses[run_id].append(loss)
    for run in runs:
        if run.epochs_done < _ENOUGH_EPOCHS and run.event_offset:
            losses[run.id] = _step_losses(RunFolder(runs_folder / run.id), run.event_offset)
    return {run_id: _thin(values) for run_id, values in losses.items()}


@lru_cache(maxsize=4096)
def _step_losses(folder: RunFolder, event_offset: int) -> list[float]:
    """Step losses as far as the index has read the events, which ``event_offset`` stands for."""
    return queries.steps_of(folder, max_points=SPARK_POINTS).losses


def _thin(values: list[float]) -> list[float]:
    if len(values) <= SPARK_POINTS:
        return values
    return [values[round(i * (len(values) - 1) / (SPARK_POINTS - 1))] for i in range(SPARK_POINTS)]


def _without_seed(name: str) -> str:
    return re.sub(r"[,\s]*\bseed \d+$", "", name)
