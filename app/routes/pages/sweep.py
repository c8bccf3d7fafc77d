"""The page of a sweep: what has it shown so far, which run is best and how far that can be trusted, what is left to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from app.compare import sweep_ranking
from app.compare.sweep_ranking import Best
from app.draw import sweep as sweep_charts
from app.draw.small import scale_of
from app.draw.svg import ResponsiveDrawing
from app.routes.pages.sweep_view import DEFAULT_SORT, FactorPlot, SweepPage, SweepQuery, text_in_address
from app.runs import commands, sweeps
from app.runs.plan import default_name
from app.runs.rows import Row, members_of, seconds_of, validation_of
from app.runs.sweeps import Factor
from app.state import Runoff
from app.store import queries
from app.store.tables import STATUSES, Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from trainer.config import RunConfig
from trainer.i18n import ngettext

router = APIRouter()
MOST_REPEATS = 100


# Routes --------------------------------------------------------------------------------------------------------------


@router.get("/sweeps/{sweep_id}")
def show(
    request: Request, state: State, session: Reading, sweep_id: str, query: Annotated[SweepQuery, Query()]
) -> Response:
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


def _page(state: Runoff, sweep_id: str, query: SweepQuery, params: Mapping[str, str], found: list[Run]) -> SweepPage:
    factors = sweeps.factors_of([run.config for run in found])
    texts = {factor.field: {text_in_address(value) for value in factor.values} for factor in factors}
    filters = {field: params[field] for field in texts if params.get(field) in texts[field]}
    shown = [
        run for run in found if all(text_in_address(run.config.get(field)) == text for field, text in filters.items())
    ]
    intervals = sweep_ranking.intervals_of(found)
    rows = sweep_ranking.rows_of(shown, intervals, fold=not query.apart)
    ranked = sweep_ranking.rank(found)
    best = sweep_ranking.best_of(state.settings.runs, ranked, intervals)
    finished = [run for run in found if run.status == "finished" and run.test_accuracy is not None]
    return SweepPage(
        id=sweep_id,
        query=query,
        filters=filters,
        runs=found,
        name=_name(found),
        factors=factors,
        rows=_sorted(rows, query.sort, factors),
        scale=scale_of([one.interval for row in rows for one in (row, *members_of(row)) if one.interval]),
        best=best,
        best_group=sweep_ranking.best_group(ranked, intervals),
        plots=_plots(factors, finished),
        parallel=_parallel(factors, finished, best, {run.id for run in shown}),
        compared=sweep_ranking.worth_comparing(ranked),
        answered=[run.id for run in ranked],
        num_shown=len(shown),
    )


def _name(found: Sequence[Run]) -> str:
    """What the names share, else what all runs train on what; "" where they differ in that too."""
    defaults = {default_name(RunConfig(**run.config)) for run in found}
    return sweeps.common_name([run.name for run in found]) or (defaults.pop() if len(defaults) == 1 else "")


def _sorted(rows: list[Row], sort: str, factors: Sequence[Factor]) -> list[Row]:
    """By a column (accuracy, validation, seconds, status, runs or a field that varies), rows without a value last."""
    by_field = {factor.field: factor for factor in factors}
    name = sort.removeprefix("-")
    keys: dict[str, Callable[[Row], float | None]] = {
        "accuracy": lambda row: row.accuracy,
        "seconds": seconds_of,
        "validation": validation_of,
        "status": lambda row: min(STATUSES.index(one.run.status) for one in members_of(row)),
        "runs": lambda row: row.run.seed,
    }
    if name in by_field:
        keys[name] = lambda row: by_field[name].place(row.run.config)
    if name not in keys:
        name, sort = DEFAULT_SORT.removeprefix("-"), DEFAULT_SORT
    key = keys[name]
    known = [row for row in rows if key(row) is not None]
    rest = [row for row in rows if key(row) is None]
    return sorted(known, key=lambda row: key(row) or 0.0, reverse=sort.startswith("-")) + rest


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
) -> ResponsiveDrawing | None:
    """None where at most one field varies: its one-factor plot says it all."""
    if len(factors) < 2 or len(finished) < 2:
        return None
    by_accuracy = sorted(finished, key=lambda run: -(run.test_accuracy or 0))
    top = {run.id for run in by_accuracy[: len(finished) // 4]}

    def css(run: Run) -> str:
        if run.id not in shown:
            return "off"
        if best and run.id == best.run.id:
            return "best"
        return "top" if run.id in top else ""

    paths = [
        sweep_charts.Path(
            run.name or run.id, [factor.place(run.config) for factor in factors], run.test_accuracy or 0.0, css(run)
        )
        for run in finished
    ]
    return sweep_charts.parallel([sweep_charts.Axis(factor.title, factor.labels) for factor in factors], paths)
