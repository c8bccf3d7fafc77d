"""The compare page: which run is better, by how much, and is it real; and why there is no answer where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlmodel import Session, col, select

from app.compare import confusion_matrix, curves, walls
from app.compare import view as parts
from app.compare.budget import accuracy_rows
from app.compare.load import MAX_COMPARED, load_comparison, runs_to_compare
from app.compare.recipes import USEFUL_SEEDS
from app.compare.shapes import DEFAULT_MARGIN, Recipe
from app.compare.view import Focus, ShownRun
from app.draw.figures import plotly_json
from app.errors import Refused
from app.routes.pages.compare_parts import Evidence, LegendLine, ToAccuracy
from app.routes.pages.compare_query import TILES, CompareQuery
from app.routes.pages.compare_view import ComparePage, PickPage
from app.runs import commands
from app.schemas import EpochOut
from app.state import Runoff
from app.statistics import t_interval
from app.store import epochs as cost
from app.store import predictions, queries
from app.store.database import reading
from app.store.images import images_of
from app.store.predictions import Predictions, PredictionsError
from app.store.tables import ACTIVE, Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from app.words import short_percent
from trainer.i18n import _

router = APIRouter()
_MOST_FURTHER = 100
_SMALLEST_MARGIN = 0.0001  # points
_PICKED = 200  # runs that the picker offers


# Routes --------------------------------------------------------------------------------------------------------------


@router.get("/compare")
def show(request: Request, state: State, session: Reading, query: Annotated[CompareQuery, Query()]) -> Response:
    """The comparison, or a choice of runs where fewer than two are named."""
    found = runs_to_compare(session, query.ids)
    version = ".".join([*(str(run.version) for run in found), queries.data_version(session)])
    unchanged = templating.unchanged(request, version)
    if unchanged:
        return unchanged
    live = any(run.status in ACTIVE for run in found)
    header = header_from(state, queries.status_counts(session))
    if len(found) < 2:
        page = _pick(session, query, found)
        return templating.render(
            request, "compare_pick.html", page, version=version, refresh="header", live=live, header=header
        )
    shown = _page(state, session, query, found)
    return templating.render(request, "compare.html", shown, version=version, live=live, header=header)


@router.get("/compare/figures/{figure}.json")
def figure(session: Reading, figure: curves.FigureName, query: Annotated[CompareQuery, Query()]) -> Response:
    """The curves of all runs for plotly.js."""
    found = runs_to_compare(session, query.ids)
    repeats = queries.runs_of_groups(session, [run.group for run in found]) if query.over == "seeds" else []
    epochs = cost.epochs_of_runs(session, [*found, *repeats])
    return JSONResponse(plotly_json(curves.figure(figure, *parts.curves_of(found, epochs, repeats), query.view)))


@router.post("/compare/repeats")
def add_repeats(
    state: State, session: Reading, a: Annotated[str, Form()], b: Annotated[str, Form()],
    further: Annotated[int, Form(ge=1, le=_MOST_FURTHER)], back: Annotated[str, Form(pattern=r"^/compare\?")] = "/runs",
) -> Response:  # fmt: skip
    """Start the seeds that both recipes lack; back to the comparison, which shows what comes of them."""
    found = runs_to_compare(session, [a, b])
    if len({run.group for run in found}) < 2:
        raise Refused(
            _("These are repeats of one recipe. Choose runs of two recipes, or add repeats on the runs page.")
        )
    session.close()  # a transaction that only reads would keep the writer waiting
    with commands.choosing_seeds:
        with reading(state.engine) as now:
            first, second = (_seeds(now, run) for run in found)
        for run, seeds in zip(found, parts.missing_seeds(first, second, further), strict=True):
            if seeds:
                commands.repeat(state, run, seeds)
    return RedirectResponse(back, status_code=303)


# The page ------------------------------------------------------------------------------------------------------------


def _pick(session: Session, query: CompareQuery, found: Sequence[Run]) -> PickPage:
    others = queries.find_runs(session, queries.RunFilter(limit=_PICKED))[0]
    offered = [*found, *(run for run in others if all(run.id != one.id for one in found))]
    start = queries.run_out(found[0]) if found else None
    return PickPage(query, {run.id for run in found}, [queries.run_out(run) for run in offered], start)


def _margin(query: CompareQuery) -> tuple[float, str]:
    """The margin as a fraction, and what is wrong with what was typed."""
    default = DEFAULT_MARGIN
    try:
        points = float(query.margin.replace("−", "-"))
    except ValueError:
        return default, _("The margin must be a number. You typed {typed}.").format(typed=query.margin[:20])
    if not _SMALLEST_MARGIN <= points <= 50:
        return default, _("The margin must be at least 0.0001 and at most 50 points. You typed {typed}.").format(
            typed=query.margin[:20]
        )
    return points / 100, ""


def _page(state: Runoff, session: Session, query: CompareQuery, found: Sequence[Run]) -> ComparePage:
    margin, problem = _margin(query)
    base = parts.base_of(query.ids, query.base)
    loaded = load_comparison(state.settings.runs, session, found, query.at, base, margin)
    comparison, shown = loaded.comparison, parts.shown_runs(loaded)
    focus = parts.focus(comparison, shown, query.pair)
    a, b = focus.a, focus.b
    has_repeats = any(len(group.runs) > 1 for group in comparison.groups)
    epochs = {run.id: one for run, one in zip(found, loaded.epochs, strict=True)}
    repeats = queries.runs_of_groups(session, [run.group for run in found]) if query.over == "seeds" else []
    missing = [run for run in repeats if run.id not in epochs]
    return ComparePage(
        query=query, shown=shown, comparison=comparison, base=base, focus=focus,
        pairs=parts.pair_table(comparison, {one.run.id: one.place for one in shown}),
        more=_more(session, a.run, b.run, focus.recipe), has_repeats=has_repeats,
        to_accuracy=_to_accuracy(query.to, loaded.epochs, [one.name for one in shown]),
        legend=_legend(found, {**epochs, **cost.epochs_of_runs(session, missing)}, repeats, query.value),
        evidence=_evidence(state, query, focus), images=images_of(state.settings.home, a.run, "test"),
        classes=list(a.run.class_names),
        config=parts.config_rows(shown, comparison, base), offered=_offered(session, found), margin_problem=problem,
        figure_version=".".join(str(run.version) for run in [*found, *repeats]),
    )  # fmt: skip


def _legend(
    found: Sequence[Run],
    epochs: Mapping[str, Sequence[EpochOut]],
    repeats: Sequence[Run],
    which: Literal["last", "best"],
) -> list[LegendLine]:
    """The curves shown, in the order of their numbers, with their values."""
    singles, groups = parts.curves_of(found, epochs, repeats)
    lines = []
    for curve in singles:
        point = curves.best_or_last(curve.points, which)
        accuracy, interval = (point.test_accuracy, point.interval) if point else (None, None)
        lines.append(LegendLine(curve.index, curve.name, accuracy, interval, point.test_loss if point else None))
    for group in groups:
        points = [one for points in group.runs if (one := curves.best_or_last(points, which))]
        accuracies, losses = [one.test_accuracy for one in points], [one.test_loss for one in points]
        n = len(points)
        lines.append(
            LegendLine(group.index, group.name, sum(accuracies) / n, t_interval(accuracies), sum(losses) / n, n)
        )
    return sorted(lines, key=lambda line: line.place)


def _to_accuracy(typed: str, epochs: Sequence[Sequence[EpochOut]], names: Sequence[str]) -> ToAccuracy:
    wanted, problem = cost.typed_accuracy(typed)
    accuracy = wanted or cost.highest_of_all(epochs)
    if accuracy is None:
        return ToAccuracy(None, [], [], typed, problem)
    costs = [cost.to_accuracy(one, accuracy) for one in epochs]
    shown = typed if problem else short_percent(accuracy)
    by_run = [one.epoch is not None for one in costs]
    return ToAccuracy(accuracy, accuracy_rows(costs, names), by_run, shown, problem)


# More seeds ----------------------------------------------------------------------------------------------------------


def _seeds(session: Session, run: Run) -> set[int]:
    """The seeds of the run's group that are finished or on their way."""
    states = ("finished", "running", "queued")
    query = select(Run.seed).where(Run.group == run.group, col(Run.status).in_(states))
    return set(session.exec(query).all())


def _more(session: Session, a: Run, b: Run, recipe: Recipe | None) -> parts.MoreSeeds | None:
    """One number of further seeds, from the power calculation; None where there is none to offer."""
    if recipe is None or recipe.verdict == "not_comparable" or recipe.further_seeds == 0:
        return None
    further = recipe.further_seeds
    if further is None:  # no number would find the margin; up to five seeds still show the spread
        further = max(USEFUL_SEEDS - min(recipe.n_a, recipe.n_b), 0)
    further = min(further, _MOST_FURTHER)
    missing = parts.missing_seeds(_seeds(session, a), _seeds(session, b), further)
    each = [_seconds(a), _seconds(b)]
    seconds = (
        sum(len(seeds) * (one or 0) for seeds, one in zip(missing, each, strict=True)) if None not in each else None
    )
    count = sum(map(len, missing))
    return parts.MoreSeeds(further, count, seconds) if count else None


def _seconds(run: Run) -> float | None:
    """What a whole run like this takes, from its epochs so far."""
    if not run.epochs_done:
        return None
    return (run.train_seconds + run.evaluation_seconds) / run.epochs_done * run.epochs


# Images and matrices -------------------------------------------------------------------------------------------------


def _evidence(state: Runoff, query: CompareQuery, focus: Focus) -> Evidence | None:
    """The images on which the two runs differ; None where they can't be compared."""
    if focus.pair.interval is None:
        return None
    try:
        mine, other = _answers(state, focus.a), _answers(state, focus.b)
    except PredictionsError:
        return None
    indices = walls.separating(mine, other, query.side, query.label, query.predicted)
    both = [(focus.a.place, mine), (focus.b.place, other)]
    is_open = query.image is not None and query.image < mine.num_images
    order = indices[: query.shown].tolist()
    at = order.index(query.image) if query.image in order else None
    size = walls.num_classes(focus.a.run.class_names, mine, other)
    return Evidence(
        counts=_counts(mine, other, query), tiles=walls.shared_tiles(order, both), total=len(indices),
        detail=walls.shared_tiles([query.image or 0], both)[0] if is_open else None,
        more=len(indices) > query.shown and query.shown < TILES.most, previous=order[at - 1] if at else None,
        next=order[at + 1] if at is not None and at + 1 < len(order) else None,
        matrix=confusion_matrix.matrix_difference(mine, other, focus.places, size)
        if size <= confusion_matrix.MOST_CLASSES else [],
        classes=walls.class_table(mine, other, focus.places, size),
    )  # fmt: skip


def _counts(mine: Predictions, other: Predictions, query: CompareQuery) -> dict[str, int]:
    """How many images each tab has."""
    sides = walls.SIDES
    return {side: len(walls.separating(mine, other, side, query.label, query.predicted)) for side in sides}


def _answers(state: Runoff, one: ShownRun) -> Predictions:
    return predictions.load(state.run_folder(one.run.id), one.epoch or 1)


def _offered(session: Session, found: Sequence[Run]) -> list[tuple[str, str, float | None]]:
    """Runs that can be added: with an epoch, tested on the same images, newest first."""
    if len(found) >= MAX_COMPARED:
        return []
    ids = [run.id for run in found]
    query = (
        select(Run.id, Run.name, Run.test_accuracy)
        .where(col(Run.id).not_in(ids), col(Run.epochs_done) > 0, col(Run.archived).is_(False))
        .where(Run.test_fingerprint == found[0].test_fingerprint)
        .order_by(col(Run.created_at).desc())
        .limit(_PICKED)
    )
    return list(session.exec(query).all())
