"""The page of a sweep: what has it shown so far, which run is best and how far that can be trusted, what is left to do."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from app.draw import sweep as sweep_charts
from app.draw.small import scale_of
from app.routes.pages.sweep_view import (
    DEFAULT_SORT,
    Best,
    FactorPlot,
    SweepPage,
    SweepQuery,
    accuracy_of,
    measured_of,
    members_of,
    seconds_of,
    text_in_address,
    validation_of,
)
from app.runs import commands, sweeps
from app.runs.plan import default_name
from app.runs.rows import GroupRow, Interval, Row, RunRow
from app.runs.sweeps import Factor
from app.state import Runoff
from app.statistics import best_of_n_optimism, wilson_interval
from app.store import predictions, queries
from app.store.predictions import PredictionsError
from app.store.tables import STATUSES, Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from trainer.config import RunConfig
from trainer.i18n import ngettext
from trainer.run_folder import RunFolder

router = APIRouter()
MOST_REPEATS = 100
_COMPARED = 5  # of the best ones


# Routes --------------------------------------------------------------------------------------------------------------


@router.get("/sweeps/{sweep_id}")
def show(
    request: Request, state: State, session: Reading, sweep_id: str, query: Annotated[SweepQuery, Query()]
) -> Response:  # fmt: skip
    """The sweep, live while any of its runs is queued or running."""
    version = queries.data_version(session)
    if same := templating.unchanged(request, version):
        return same
    found = queries.sweep_runs(session, sweep_id)
    page = _page(state, sweep_id, query, request.query_params, found)
    header = header_from(state, queries.status_counts(session))
    return templating.render(request, "sweep.html", page, version=version, live=bool(page.num_active), header=header)


@router.post("/sweeps/{sweep_id}/cancel")
def cancel(state: State, sweep_id: str) -> Response:
    """Cancel what of the sweep has not ended; back to it."""
    commands.cancel_sweep(state, sweep_id)
    return RedirectResponse(f"/sweeps/{sweep_id}", status_code=303)


@router.post("/groups/{group}/repeats")
def add_repeats(
    request: Request, state: State, group: str, count: Annotated[int, Form(ge=1, le=MOST_REPEATS)] = 3
) -> Response:
    """Start more repeats of a group: a line in the corner of the page that asked, else on to the group's runs."""
    started = commands.add_repeats(state, group, count).runs
    if "HX-Request" not in request.headers:
        return RedirectResponse(f"/runs?group={group}", status_code=303)
    words = ngettext("{n} more repeat of {name}: seed {seeds}", "{n} more repeats of {name}: seeds {seeds}", count)
    seeds = ", ".join(str(seed) for seed in sorted(run.seed for run in started)[:8]) + (" …" if count > 8 else "")
    name = sweeps.without_seed(started[0].name)
    return templating.toast("plus", words.format(n=count, name=name, seeds=seeds))


# The page ------------------------------------------------------------------------------------------------------------


def _page(
    state: Runoff, sweep_id: str, query: SweepQuery, params: Mapping[str, str], found: list[Run]
) -> SweepPage:  # fmt: skip
    factors = sweeps.factors_of([run.config for run in found])
    texts = {factor.field: {text_in_address(value) for value in factor.values} for factor in factors}
    filters = {field: params[field] for field in texts if params.get(field) in texts[field]}
    shown = [
        run for run in found if all(text_in_address(run.config.get(field)) == text for field, text in filters.items())
    ]
    intervals = _intervals(found)
    rows = _rows(shown, intervals, fold=not query.apart)
    ranked = _ranked(found)
    best = _best(state.settings.runs, ranked, intervals)
    finished = [run for run in found if run.status == "finished" and run.test_accuracy is not None]
    return SweepPage(
        id=sweep_id, query=query, filters=filters, runs=found, name=_name(found),
        factors=factors, rows=_sorted(rows, query.sort, factors),
        scale=scale_of([one.interval for row in rows for one in (row, *members_of(row)) if one.interval]),
        best=best, best_group=_best_group(ranked, intervals), plots=_plots(factors, finished),
        parallel=_parallel(factors, finished, best, {run.id for run in shown}), compared=_compared(ranked),
        answered=[run.id for run in ranked], num_shown=len(shown),
    )  # fmt: skip


def _name(found: Sequence[Run]) -> str:
    """What the names share, else what all runs train on what; "" where they differ in that too."""
    defaults = {default_name(RunConfig(**run.config)) for run in found}
    return sweeps.common_name([run.name for run in found]) or (defaults.pop() if len(defaults) == 1 else "")


def _intervals(found: Sequence[Run]) -> dict[str, Interval]:
    known = [run for run in found if run.test_total]
    low, high = wilson_interval([run.test_correct or 0 for run in known], [run.test_total or 0 for run in known])
    return {run.id: (a, b) for run, a, b in zip(known, low.tolist(), high.tolist(), strict=True)}


def _rows(shown: Sequence[Run], intervals: Mapping[str, Interval], *, fold: bool) -> list[Row]:
    """One row a group, or one a run; a group of one run is a row of its own kind either way."""
    groups: dict[str, list[RunRow]] = {}
    for run in shown:
        progress = queries.progress_of(run) if run.status == "running" else None
        row = RunRow(run, intervals.get(run.id), [], progress, None, "")
        groups.setdefault(run.group if fold else run.id, []).append(row)
    return [
        members[0] if len(members) == 1
        else GroupRow(members[0].run.group, sorted(members, key=lambda row: row.run.seed), is_open=False)
        for members in groups.values()
    ]  # fmt: skip


def _sorted(rows: list[Row], sort: str, factors: Sequence[Factor]) -> list[Row]:
    """By a column (accuracy, validation, seconds, status, runs or a field that varies), rows without a value last."""
    by_field = {factor.field: factor for factor in factors}
    name = sort.removeprefix("-")
    keys: dict[str, Callable[[Row], float | None]] = {
        "accuracy": accuracy_of, "seconds": seconds_of, "validation": validation_of,
        "status": lambda row: min(STATUSES.index(one.run.status) for one in members_of(row)),
        "runs": lambda row: row.run.seed,
    }  # fmt: skip
    if name in by_field:
        keys[name] = lambda row: by_field[name].place(row.run.config)
    if name not in keys:
        name, sort = DEFAULT_SORT.removeprefix("-"), DEFAULT_SORT
    key = keys[name]
    known = [row for row in rows if key(row) is not None]
    rest = [row for row in rows if key(row) is None]
    return sorted(known, key=lambda row: key(row) or 0.0, reverse=sort.startswith("-")) + rest


# The best ------------------------------------------------------------------------------------------------------------


def _ranked(found: Sequence[Run]) -> list[Run]:
    """The finished runs that were tested on the same images (those of most runs), best first."""
    finished = [run for run in found if run.status == "finished" and run.test_accuracy is not None and run.test_total]
    if not finished:
        return []
    [(images, _count)] = Counter(run.test_fingerprint for run in finished).most_common(1)
    same = [run for run in finished if run.test_fingerprint == images]
    return sorted(same, key=lambda run: -_score(run, _has_validation(same)))


def _has_validation(found: Sequence[Run]) -> bool:
    return all(run.validation_accuracy is not None for run in found)


def _score(run: Run, by_validation: bool) -> float:
    """What a run is chosen by: validation accuracy where all have one."""
    return (run.validation_accuracy if by_validation else run.test_accuracy) or 0.0


def _best(folder: Path, ranked: Sequence[Run], intervals: Mapping[str, Interval]) -> Best | None:
    if not ranked:
        return None
    by_validation = _has_validation(ranked)
    chosen_by_test = len(ranked) > 1 and not by_validation
    optimism = None
    if chosen_by_test:
        with contextlib.suppress(PredictionsError):
            optimism = _optimism(folder, tuple((run.id, run.epochs_done) for run in ranked))
    return Best(ranked[0], intervals[ranked[0].id], len(ranked), by_validation, optimism)


@lru_cache(maxsize=32)
def _optimism(folder: Path, answers: tuple[tuple[str, int], ...]) -> float | None:
    """The bias of choosing the best of the runs (id, epoch) by their test answers; None where it can't be told.

    Raises ``PredictionsError``, which is not remembered: a missing file may come back.
    """
    found = [predictions.load(RunFolder(folder / run_id), epoch).correct for run_id, epoch in answers]
    if len({len(correct) for correct in found}) > 1 or len(found[0]) < 2:
        return None
    return best_of_n_optimism(np.stack(found))


def _groups(ranked: Sequence[Run], intervals: Mapping[str, Interval]) -> list[Row]:
    """The groups of the ranked runs, the best by its mean first (by validation where all have it)."""
    by_validation = _has_validation(ranked)

    def mean(row: Row) -> float:
        scores = [_score(one.run, by_validation) for one in measured_of(row)]
        return sum(scores) / len(scores)

    return sorted(_rows(ranked, intervals, fold=True), key=mean, reverse=True)


def _best_group(ranked: Sequence[Run], intervals: Mapping[str, Interval]) -> GroupRow | None:
    """The best by the mean over seeds among those with two or more; None where there is no other to compare with."""
    groups = [row for row in _groups(ranked, intervals) if isinstance(row, GroupRow) and len(row.accuracies) > 1]
    return groups[0] if len(groups) > 1 else None


def _compared(ranked: Sequence[Run]) -> list[str]:
    """One run of each of the best groups, of one seed where all have it: the compare page brings in the repeats."""
    groups = _groups(ranked, {})[:_COMPARED]
    members = [measured_of(row) for row in groups]
    if len(members) < 2:
        return [run.id for run in ranked[:_COMPARED]]
    shared = set.intersection(*({one.run.seed for one in found} for found in members))
    return [next((one for one in found if one.run.seed in shared), found[0]).run.id for found in members]


# Charts --------------------------------------------------------------------------------------------------------------


def _plots(factors: Sequence[Factor], finished: Sequence[Run]) -> list[FactorPlot]:
    if not finished:
        return []
    results = [sweeps.Result(run.config, run.group, run.test_accuracy or 0.0) for run in finished]
    domain = sweep_charts.domain_of([result.accuracy for result in results])
    plots = []
    for factor in factors:
        levels = sweeps.levels_of(factor, results)
        chart = sweep_charts.one_factor(factor.title, levels, domain)
        plots.append(FactorPlot(factor, levels, chart, sweeps.is_balanced(factor, factors, results)))
    return plots


def _parallel(
    factors: Sequence[Factor], finished: Sequence[Run], best: Best | None, shown: set[str]
) -> list[sweep_charts.Chart]:
    """Empty where one field or none varies: its one-factor plot says it all."""
    if len(factors) < 2 or len(finished) < 2:
        return []
    by_accuracy = sorted(finished, key=lambda run: -(run.test_accuracy or 0))
    top = {run.id for run in by_accuracy[: len(finished) // 4]}
    paths = [
        sweep_charts.Path(
            run.name or run.id, [factor.place(run.config) for factor in factors], run.test_accuracy or 0.0,
            "off" if run.id not in shown else "best" if best and run.id == best.run.id else "top" if run.id in top else "",
        )
        for run in finished
    ]  # fmt: skip
    return sweep_charts.parallel([sweep_charts.Axis(factor.title, factor.labels) for factor in factors], paths)
