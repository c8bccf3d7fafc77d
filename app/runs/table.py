"""Loads a page of the runs table: which runs match, repeats folded into one row, in which order."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, cast

from sqlalchemy import String, func, type_coerce
from sqlalchemy import select as select_columns
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from app.runs.queue import queued_ids, restart_words, running_runs
from app.runs.rows import GroupRow, Interval, Row, RunRow
from app.statistics import wilson_interval
from app.store.files import steps_of
from app.store.queries import RunFilter, conditions_of, order_of, progress_of
from app.store.tables import ENDED, STATUSES, Epoch, Run
from app.words import remaining
from trainer.i18n import _
from trainer.run_folder import RunFolder

MOST_AT_ONCE = 1000  # runs that one action may touch
PAGE_SIZE = 100  # rows; a group counts as one
SPARK_POINTS = 44
KEPT_RUNS = 1000  # whose rows are kept; a group counts as its runs
_NOT_SHOWN = [defer(getattr(Run, name)) for name in ("class_names", "warnings")]
_ENOUGH_EPOCHS = 12  # from here on a sparkline is drawn from epochs, not from steps


@dataclass(frozen=True)
class RunTable:
    """One page of the runs table, with the counts that are shown around it."""

    rows: list[Row]
    counts: dict[str, int]  # of each status, under the other filters
    num_matching: int  # runs
    num_rows: int  # on all pages
    num_newer: int  # runs that were created after ``until``
    until: str  # when the newest run shown was created

    @property
    def intervals(self) -> list[Interval]:
        """The intervals of all rows, and of the members of groups."""
        rows = [one for row in self.rows for one in (row, *(row.members if isinstance(row, GroupRow) else []))]
        return [row.interval for row in rows if row.interval]


@dataclass(frozen=True)
class _Matches:
    """What folding and paging need of the matching runs, as columns in the order of the table: few objects for many runs."""

    ids: list[str]
    groups: list[str]
    seeds: list[int]
    statuses: list[str]
    created_at: list[str]
    versions: list[int]


# The columns of a repeat that a group needs: all but those that are large and the same for each, or not shown.
_MEMBER_COLUMNS = [
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
    """The rows of page ``page``. With ``until`` only runs created up to that time are shown, and newer ones counted.

    Raises ``Refused`` for an unknown status or sort.
    """
    conditions_of(wanted)  # refuses an unknown status, which the next line leaves out
    matches = _matches(session, replace(wanted, status=None))
    counts = Counter(matches.statuses)
    matching = [i for i, status in enumerate(matches.statuses) if not wanted.status or status == wanted.status]
    shown = [i for i in matching if matches.created_at[i] <= until] if until else matching
    units = _fold(matches, shown) if fold else [[i] for i in shown]
    on_page = units[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    rows = _rows(session, runs_folder, matches, on_page, set(open_groups))
    return RunTable(
        rows=rows,
        counts={status: counts[status] for status in STATUSES},
        num_matching=len(shown),
        num_rows=len(units),
        num_newer=len(matching) - len(shown),
        until=until or max((matches.created_at[i] for i in matching), default=""),
    )


def matching_ids(session: Session, wanted: RunFilter) -> list[str]:
    """The ids of all runs that match, in order. Raises ``Refused``."""
    return _matches(session, wanted).ids


def _matches(session: Session, wanted: RunFilter) -> _Matches:
    names = (Run.id, Run.group, Run.seed, Run.status, Run.created_at, Run.version)
    query = (
        select_columns(*(col(name) for name in names)).where(*conditions_of(wanted)).order_by(*order_of(wanted.sort))
    )
    ordered = query.subquery()  # SQLite keeps its order for aggregates whose result depends on it
    columns = (type_coerce(func.json_group_array(column), String) for column in ordered.c)
    return _Matches(*(json.loads(column) for column in session.connection().execute(select_columns(*columns)).one()))


def _fold(matches: _Matches, shown: Sequence[int]) -> list[list[int]]:
    """The positions of each row's runs. Runs of one group with two or more seeds share a row, where the first would be."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i in shown:
        groups[matches.groups[i]].append(i)
    folded = {
        group: members
        for group, members in groups.items()
        if len(members) > 1 and any(matches.seeds[i] != matches.seeds[members[0]] for i in members)
    }
    units: list[list[int]] = []
    for i in shown:
        members = folded.get(matches.groups[i])
        if members is None:
            units.append([i])
        elif members[0] == i:
            units.append(members)
    return units


def _rows(
    session: Session, runs_folder: Path, matches: _Matches, units: Sequence[Sequence[int]], open_groups: set[str]
) -> list[Row]:
    """The rows of the units. A row whose runs have ended and did not change is taken from the cache."""
    keys = [_key(runs_folder, matches, unit, matches.groups[unit[0]] in open_groups) for unit in units]
    rows = [_cache.get(key) for key in keys]
    new = [unit for unit, row in zip(units, rows, strict=True) if row is None]
    alone = {matches.ids[i] for unit in new for i in unit if len(unit) == 1 or matches.groups[i] in open_groups}
    first = {matches.ids[min(unit, key=lambda i: matches.seeds[i])] for unit in new}
    others = {matches.ids[i] for unit in new for i in unit} - alone - first
    made = _make_rows(session, runs_folder, alone, first - alone, others) if new else {}
    for place, (unit, key) in enumerate(zip(units, keys, strict=True)):
        members = [made[matches.ids[i]] for i in unit if matches.ids[i] in made]
        if rows[place] is None and members:
            rows[place] = row = _row(members, len(unit) > 1, open_groups)
            _cache.put(key, row)
    return [row for row in rows if row is not None]


_Key = tuple[Path, bool, tuple[tuple[str, int], ...]]


def _key(runs_folder: Path, matches: _Matches, unit: Sequence[int], is_open: bool) -> _Key | None:
    """The key of a row in the cache; None where a run has not ended, because such a row changes with the clock."""
    if any(matches.statuses[i] not in ENDED for i in unit):
        return None
    return runs_folder, is_open, tuple((matches.ids[i], matches.versions[i]) for i in unit)


class _RowCache:
    """The rows that were asked for last. None goes stale, because a changed run has a version that it never had before."""

    def __init__(self) -> None:
        self._rows: OrderedDict[_Key, Row] = OrderedDict()
        self._num_runs = 0
        self._lock = Lock()

    def get(self, key: _Key | None) -> Row | None:
        with self._lock:
            if key is None or key not in self._rows:
                return None
            self._rows.move_to_end(key)
            return self._rows[key]

    def put(self, key: _Key | None, row: Row) -> None:
        with self._lock:
            if key is not None and key not in self._rows:
                self._rows[key] = row
                self._num_runs += len(key[2])
            while self._num_runs > KEPT_RUNS and len(self._rows) > 1:
                (_folder, _is_open, runs), _row = self._rows.popitem(last=False)
                self._num_runs -= len(runs)

    def clear(self) -> None:
        with self._lock:
            self._rows.clear()
            self._num_runs = 0


_cache = _RowCache()


def _row(members: Sequence[RunRow], is_group: bool, open_groups: set[str]) -> Row:
    if not is_group:
        return members[0]
    group = members[0].run.group
    children = [replace(row, is_child=True) for row in members]
    return GroupRow(group, sorted(children, key=lambda row: row.run.seed), group in open_groups)


def _make_rows(
    session: Session, runs_folder: Path, alone: set[str], first: set[str], others: set[str]
) -> dict[str, RunRow]:
    """The rows of runs by id: ``alone`` have a line of their own, ``first`` stand for their group, ``others`` are folded."""
    whole = select(Run).where(col(Run.id).in_(_one_parameter(alone | first))).options(*_NOT_SHOWN)
    runs = list(session.exec(whole).all())
    losses = _losses_of(session, runs_folder, [run for run in runs if run.id in alone])
    if others:
        slim = select_columns(*_MEMBER_COLUMNS).where(col(Run.id).in_(_one_parameter(others)))
        runs += cast(Sequence[Run], session.connection().execute(slim).all())
    places = _places_in_queue(session) if any(run.status == "queued" for run in runs) else {}
    return {
        run.id: _run_row(run, interval, losses.get(run.id, []), places.get(run.id, ""))
        for run, interval in zip(runs, _intervals_of(runs), strict=True)
    }


def _one_parameter(values: Iterable[Any]) -> Any:
    """Any number of values as rows of one bound parameter, so that the statement stays the same."""
    rows = func.json_each(json.dumps(list(values))).table_valued("value")
    return select_columns(rows.c.value)


def _run_row(run: Run, interval: Interval | None, losses: list[float], waiting: str) -> RunRow:
    progress = progress_of(run) if run.status == "running" else None
    left = remaining(progress.seconds_left, progress.updated_at) if progress else None
    return RunRow(run, interval, losses, progress, left, restart_words(run) or waiting)


def _intervals_of(runs: Sequence[Run]) -> list[Interval | None]:
    low, high = wilson_interval([run.test_correct or 0 for run in runs], [run.test_total or 0 for run in runs])
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return [pair if run.test_total else None for run, pair in zip(runs, pairs, strict=True)]


def _places_in_queue(session: Session) -> dict[str, str]:
    """For each queued run, in words, when it starts."""
    queued = queued_ids(session)
    running = running_runs(session)
    waits = [left for run in running if (left := remaining(run.seconds_left, run.updated_at)) is not None]
    words = {run_id: _("waiting, {n} before it").format(n=place) for place, run_id in enumerate(queued)}
    if queued:
        words[queued[0]] = _("next, in about {seconds} s").format(seconds=round(min(waits))) if waits else _("next")
    return words


# Sparklines ----------------------------------------------------------------------------------------------------------


def _losses_of(session: Session, runs_folder: Path, runs: Sequence[Run]) -> dict[str, list[float]]:
    """Training losses of each run: by epoch where there are enough epochs, else by step."""
    long = [run for run in runs if run.epochs_done >= _ENOUGH_EPOCHS]
    losses = _epoch_losses(session, long) if long else {}
    for run in runs:
        if run.epochs_done < _ENOUGH_EPOCHS and run.event_offset:
            losses[run.id] = _step_losses(RunFolder(runs_folder / run.id), run.event_offset)
    return losses


def _epoch_losses(session: Session, runs: Sequence[Run]) -> dict[str, list[float]]:
    """Training losses of each run after at most ``SPARK_POINTS`` of its epochs, evenly spread, the last among them."""
    wanted = [[run.id, epoch] for run in runs for epoch in _evenly_spread(run.epochs_done)]
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
    losses = {run_id: json.loads(by_epoch) for run_id, by_epoch in session.connection().execute(query).all()}
    return {run_id: [by_epoch[key] for key in sorted(by_epoch, key=int)] for run_id, by_epoch in losses.items()}


def _evenly_spread(num_epochs: int) -> list[int]:
    if num_epochs <= SPARK_POINTS:
        return list(range(1, num_epochs + 1))
    return [1 + round(i * (num_epochs - 1) / (SPARK_POINTS - 1)) for i in range(SPARK_POINTS)]


@lru_cache(maxsize=4096)
def _step_losses(folder: RunFolder, event_offset: int) -> list[float]:
    """Step losses up to ``event_offset``, which is how far the index has read the events."""
    return steps_of(folder, max_points=SPARK_POINTS).losses
