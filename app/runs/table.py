"""The rows of the runs page: which runs match, repeats folded into one row, what a row shows. No HTML, no writes."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, cast

from sqlalchemy import String, func, type_coerce
from sqlalchemy import select as select_columns
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from app.draw.small import Scale, scale_of
from app.errors import Refused
from app.runs.sweeps import without_seed
from app.schemas import RunProgress
from app.statistics import t_interval, wilson_interval
from app.store import queries, search
from app.store.queries import RunFilter, conditions_of, order_of, progress_of
from app.store.search import Field
from app.store.tables import ENDED, STATUSES, Epoch, Run
from app.words import compact, number, percent, remaining, value_words
from trainer.config import FieldProblem
from trainer.i18n import N_, _, ngettext
from trainer.run_folder import RunFolder

MOST_AT_ONCE = 1000  # runs that one action may touch
PAGE_SIZE = 100  # rows; a group counts as one
SPARK_POINTS = 44
KEPT_ROWS = 1000
_UNSEEN = [defer(getattr(Run, name)) for name in ("class_names", "warnings")]  # no row shows them
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


@dataclass(frozen=True, eq=False)
class RunRow:
    """One run. Rows are compared by identity: the same object is the same content."""

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
    def defect(self) -> str:
        """A sentence where the stored answers are not what the log says, else ""."""
        return queries.stored_defect(self.run)

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


@dataclass(frozen=True, eq=False)
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
        return without_seed(self.run.name) or f"{self.run.model}, {self.run.dataset}"

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
    def defects(self) -> str:
        """How many repeats have a defect; "" where none has."""
        count = sum(row.run.defect is not None for row in self.members)
        return ngettext("{n} repeat has a defect", "{n} repeats have a defect", count).format(n=count) if count else ""

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

    @cached_property
    def measured(self) -> list[RunRow]:
        """The newest finished run of each seed: what the mean is over."""
        newest: dict[int, RunRow] = {}
        for row in self.members:
            other = newest.get(row.run.seed)
            if row.run.status == "finished" and (other is None or row.run.created_at > other.run.created_at):
                newest[row.run.seed] = row
        return [row for row in newest.values() if row.run.test_accuracy is not None]

    @cached_property
    def accuracies(self) -> list[float]:
        return [row.run.test_accuracy for row in self.measured if row.run.test_accuracy is not None]

    @property
    def mean(self) -> float | None:
        values = self.accuracies
        return sum(values) / len(values) if values else None

    @cached_property
    def interval(self) -> Interval | None:
        """95 % t interval of the mean over seeds; of a single seed its own."""
        values = self.accuracies
        if len(values) < 2:
            return self.measured[0].interval if values else None
        low, high = t_interval(values)
        return max(0.0, low), min(1.0, high)

    @cached_property
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


# Columns -------------------------------------------------------------------------------------------------------------

DEFAULT_COLUMNS = (
    "model", "epochs", "test_accuracy", "best_test_accuracy", "train_loss", "train_seconds", "images_per_second",
)  # fmt: skip
MOST_COLUMNS = 30
_FIXED = ("status", "name")  # always there
_DIGITS = 4


@dataclass(frozen=True)
class Column:
    """A column of the table: a field of a run. Some have words and drawings of their own (templates/macros/runs.html)."""

    field: Field

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def title(self) -> str:
        titles = {
            "test_accuracy": N_("Test accuracy, %"), "best_test_accuracy": N_("Best"), "train_loss": N_("Training loss"),
            "train_seconds": N_("Time"),
        }  # fmt: skip
        words = _(titles.get(self.name, self.field.title))
        return f"{words}, %" if self.field.kind == "accuracy" and self.name not in titles else words

    @property
    def hint(self) -> str:
        return _(_HINTS.get(self.name, ""))

    @property
    def kind(self) -> str:
        """The classes of its cells."""
        if self.name not in DEFAULT_COLUMNS:
            return "num extra" if self.field.kind in ("number", "accuracy") else "extra"
        numbers = ("best_test_accuracy", "train_seconds", "images_per_second")
        return {"model": "opt", "train_loss": "opt", **dict.fromkeys(numbers, "num opt")}.get(self.name, "")

    @property
    def descending_first(self) -> bool:
        """Whether the largest is what one looks for first."""
        return self.field.part == "result" and not self.name.endswith("_loss")

    def text(self, rows: Sequence[RunRow]) -> str:
        """The value of one run, or of repeats: what they have in common, the mean of results, or how many there are."""
        if self.field.in_config or self.name == "notes":
            rows = rows[:1]  # the same for all repeats, or long
        values = [value for row in rows if (value := self.field.of(row.run)) is not None]
        if not values:
            return ""
        distinct = list(dict.fromkeys(values))
        if len(distinct) > 1 and self.field.part == "result":
            return _("mean {value}").format(value=self._words(sum(values) / len(values)))
        if len(distinct) > 1:
            return ngettext("{n} value", "{n} values", len(distinct)).format(n=len(distinct))
        return self._words(distinct[0])

    def _words(self, value: Any) -> str:
        if self.field.kind == "accuracy":
            return percent(value)
        if self.field.kind == "time":
            return str(value)[:16].replace("T", " ")
        if self.field.part == "result":
            return number(value) if float(value).is_integer() else compact(value, _DIGITS)
        return value_words(value)


_HINTS = {
    "test_accuracy": N_("after the last epoch, with its 95 % interval"),
    "best_test_accuracy": N_("optimistic where it was chosen on the test images themselves"),
    "train_seconds": N_("training only, without evaluation and saving"),
    "images_per_second": N_("training images a second"),
}


def columns_of(names: Iterable[str]) -> list[Column]:
    """The columns with these names, several with commas between; those of the table itself without any. Raises ``Refused``."""
    wanted = list(dict.fromkeys(name for value in names for name in value.split(",") if name)) or [*DEFAULT_COLUMNS]
    known = {column.name: column for column in all_columns()}
    for name in wanted:
        if name not in known:
            raise Refused.fields([FieldProblem(field="columns", message=search.unknown_field(name))])
    if len(wanted) > MOST_COLUMNS:
        message = _("At most {limit} columns can be shown.").format(limit=MOST_COLUMNS)
        raise Refused.fields([FieldProblem(field="columns", message=message)])
    return [known[name] for name in wanted]


def all_columns() -> list[Column]:
    """Every column that can be chosen, in the order in which they are offered."""
    fields = [field for name, field in search.fields().items() if name not in _FIXED]
    first = [field for name in DEFAULT_COLUMNS for field in fields if field.name == name]
    return [Column(field) for field in [*first, *(field for field in fields if field.name not in DEFAULT_COLUMNS)]]


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
    """What folding and paging need of the runs, as columns in the order of the table: few objects for many runs."""

    ids: list[str]
    groups: list[str]
    seeds: list[int]
    statuses: list[str]
    created_at: list[str]
    versions: list[int]


# What the row of a group needs of its repeats: all but what is large and the same for each, or not shown.
_MEMBER = [
    getattr(Run, name)
    for name in Run.model_fields
    if name not in ("config", "class_names", "warnings", "error", "notes")
]


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
    light = _light(session, replace(wanted, status=None))
    counts = Counter(light.statuses)
    matching = [i for i, status in enumerate(light.statuses) if not wanted.status or status == wanted.status]
    shown = [i for i in matching if light.created_at[i] <= until] if until else matching
    units = _fold(light, shown) if fold else [[i] for i in shown]
    on_page = units[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    rows = _rows(session, runs_folder, light, on_page, set(open_groups))
    return RunTable(
        rows=rows,
        scale=scale_of([row.interval for row in _spread(rows) if row.interval]),
        counts={status: counts[status] for status in STATUSES},
        num_matching=len(shown),
        num_rows=len(units),
        num_newer=len(matching) - len(shown),
        until=until or max((light.created_at[i] for i in matching), default=""),
    )


def matching_ids(session: Session, wanted: RunFilter) -> list[str]:
    """The ids of all runs that match, in order. Raises ``Refused``."""
    return _light(session, wanted).ids


def _light(session: Session, wanted: RunFilter) -> _Light:
    names = (Run.id, Run.group, Run.seed, Run.status, Run.created_at, Run.version)
    query = (
        select_columns(*(col(name) for name in names)).where(*conditions_of(wanted)).order_by(*order_of(wanted.sort))
    )
    ordered = query.subquery()  # SQLite keeps its order for aggregates whose result depends on it
    columns = (type_coerce(func.json_group_array(column), String) for column in ordered.c)
    return _Light(*(json.loads(column) for column in session.connection().execute(select_columns(*columns)).one()))


def _fold(light: _Light, shown: Sequence[int]) -> list[list[int]]:
    """Runs of one group with two or more seeds together, at the place of the first of them."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in shown:
        groups[light.groups[i]].append(i)
    folded = {
        group: members
        for group, members in groups.items()
        if len(members) > 1 and any(light.seeds[i] != light.seeds[members[0]] for i in members)
    }
    units: list[list[int]] = []
    for i in shown:
        members = folded.get(light.groups[i])
        if members is None:
            units.append([i])
        elif members[0] == i:
            units.append(members)
    return units


def _rows(
    session: Session, runs_folder: Path, light: _Light, units: Sequence[Sequence[int]], open_groups: set[str]
) -> list[Row]:
    """The rows of the units; those whose runs have ended and did not change are taken from before."""
    keys = [_key(runs_folder, light, unit, light.groups[unit[0]] in open_groups) for unit in units]
    rows = [_kept.get(key) for key in keys]
    new = [unit for unit, row in zip(units, rows, strict=True) if row is None]
    alone = {light.ids[i] for unit in new for i in unit if len(unit) == 1 or light.groups[i] in open_groups}
    first = {light.ids[min(unit, key=lambda i: light.seeds[i])] for unit in new}
    others = {light.ids[i] for unit in new for i in unit} - alone - first
    made = _make_rows(session, runs_folder, alone, first - alone, others) if new else {}
    for place, (unit, key) in enumerate(zip(units, keys, strict=True)):
        members = [made[light.ids[i]] for i in unit if light.ids[i] in made]
        if rows[place] is None and members:
            rows[place] = row = _row(members, len(unit) > 1, open_groups)
            _kept.put(key, row)
    return [row for row in rows if row is not None]


_Key = tuple[Path, bool, tuple[tuple[str, int], ...]]


def _key(runs_folder: Path, light: _Light, unit: Sequence[int], is_open: bool) -> _Key | None:
    """What the row of these runs is kept by; None where one has not ended: the row of such a one moves with the clock."""
    if any(light.statuses[i] not in ENDED for i in unit):
        return None
    return runs_folder, is_open, tuple((light.ids[i], light.versions[i]) for i in unit)


class _Kept:
    """The rows that were asked for last. None goes stale: a changed run has a version that it never had before."""

    def __init__(self) -> None:
        self._rows: OrderedDict[_Key, Row] = OrderedDict()
        self._lock = Lock()

    def get(self, key: _Key | None) -> Row | None:
        with self._lock:
            if key is None or key not in self._rows:
                return None
            self._rows.move_to_end(key)
            return self._rows[key]

    def put(self, key: _Key | None, row: Row) -> None:
        with self._lock:
            if key is not None:
                self._rows[key] = row
            while len(self._rows) > KEPT_ROWS:
                self._rows.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()


_kept = _Kept()


def _row(members: Sequence[RunRow], folds: bool, open_groups: set[str]) -> Row:
    if not folds:
        return members[0]
    group = members[0].run.group
    children = [replace(row, is_child=True) for row in members]
    return GroupRow(group, sorted(children, key=lambda row: row.run.seed), group in open_groups)


def _spread(rows: Iterable[Row]) -> Iterable[Row]:
    """All rows, and the members of groups."""
    for row in rows:
        yield row
        if isinstance(row, GroupRow):
            yield from row.members


def _make_rows(
    session: Session, runs_folder: Path, alone: set[str], first: set[str], others: set[str]
) -> dict[str, RunRow]:
    """The rows of the runs by id: those ``alone`` have a line of their own, ``first`` stands for its repeats, the ``others``."""
    whole = select(Run).where(col(Run.id).in_(_listed(alone | first))).options(*_UNSEEN)
    runs = list(session.exec(whole).all())
    losses = _losses_of(session, runs_folder, [run for run in runs if run.id in alone])
    if others:
        slim = select_columns(*_MEMBER).where(col(Run.id).in_(_listed(others)))
        runs += cast(Sequence[Run], session.connection().execute(slim).all())
    places = _places_in_queue(session) if any(run.status == "queued" for run in runs) else {}
    return {
        run.id: _run_row(run, interval, losses.get(run.id, []), places.get(run.id, ""))
        for run, interval in zip(runs, _intervals_of(runs), strict=True)
    }


def _listed(values: Iterable[Any]) -> Any:
    """The values as rows of one bound parameter: one statement, however many there are."""
    rows = func.json_each(json.dumps(list(values))).table_valued("value")
    return select_columns(rows.c.value)


def _run_row(run: Run, interval: Interval | None, losses: list[float], waiting: str) -> RunRow:
    progress = progress_of(run) if run.status == "running" else None
    left = remaining(progress.seconds_left, progress.updated_at) if progress else None
    return RunRow(run, interval, losses, progress, left, waiting)


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
    long = [run for run in runs if run.epochs_done >= _ENOUGH_EPOCHS]
    losses = _epoch_losses(session, long) if long else {}
    for run in runs:
        if run.epochs_done < _ENOUGH_EPOCHS and run.event_offset:
            losses[run.id] = _step_losses(RunFolder(runs_folder / run.id), run.event_offset)
    return losses


def _epoch_losses(session: Session, runs: Sequence[Run]) -> dict[str, list[float]]:
    """Training losses of each run after at most ``SPARK_POINTS`` of its epochs, evenly spread, the last among them."""
    wanted = [[run.id, epoch] for run in runs for epoch in _spread_epochs(run.epochs_done)]
    rows = func.json_each(json.dumps(wanted)).table_valued("value")
    run_id, epoch = (func.json_extract(rows.c.value, f"$[{place}]") for place in (0, 1))
    query = (
        select_columns(
            col(Epoch.run_id), type_coerce(func.json_group_object(col(Epoch.epoch), col(Epoch.train_loss)), String)
        )
        .select_from(rows)
        .join(Epoch, (col(Epoch.run_id) == run_id) & (col(Epoch.epoch) == epoch))
        .group_by(col(Epoch.run_id))
    )
    found = {run_id: json.loads(by_epoch) for run_id, by_epoch in session.connection().execute(query).all()}
    return {run_id: [by_epoch[key] for key in sorted(by_epoch, key=int)] for run_id, by_epoch in found.items()}


def _spread_epochs(num_epochs: int) -> list[int]:
    if num_epochs <= SPARK_POINTS:
        return list(range(1, num_epochs + 1))
    return [1 + round(i * (num_epochs - 1) / (SPARK_POINTS - 1)) for i in range(SPARK_POINTS)]


@lru_cache(maxsize=4096)
def _step_losses(folder: RunFolder, event_offset: int) -> list[float]:
    """Step losses as far as the index has read the events, which ``event_offset`` stands for."""
    return queries.steps_of(folder, max_points=SPARK_POINTS).losses
