"""The compare page: which run is better, by how much, and is it real; and why there is no answer where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlmodel import Session, col, select

from app.compare import confusion_matrix, curves, more_seeds, pair_images, view, walls
from app.compare.budget import to_accuracy
from app.compare.load import MAX_COMPARED, LoadedComparison, load_comparison, runs_to_compare
from app.compare.view import Focus
from app.draw.figures import plotly_json
from app.errors import Refused
from app.routes.pages.compare_parts import Evidence
from app.routes.pages.compare_query import TILES, CompareQuery
from app.routes.pages.compare_view import ComparePage, PickPage
from app.runs import commands
from app.state import Runoff
from app.store import queries
from app.store.database import reading
from app.store.epochs import epochs_of_runs
from app.store.images import images_of
from app.store.tables import ACTIVE, Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from trainer.i18n import _

router = APIRouter()
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
    repeats = _repeats(session, query, found)
    epochs = epochs_of_runs(session, [*found, *repeats])
    return JSONResponse(plotly_json(curves.figure(figure, *curves.curves_of(found, epochs, repeats), query.view)))


@router.post("/compare/repeats")
def add_repeats(
    state: State,
    session: Reading,
    a: Annotated[str, Form()],
    b: Annotated[str, Form()],
    further: Annotated[int, Form(ge=1, le=more_seeds.MOST_FURTHER)],
    back: Annotated[str, Form(pattern=r"^/compare\?")] = "/runs",
) -> Response:
    """Start the seeds that both recipes lack; back to the comparison, which shows what comes of them."""
    found = runs_to_compare(session, [a, b])
    if len({run.group for run in found}) < 2:
        raise Refused(
            _("These are repeats of one recipe. Choose runs of two recipes, or add repeats on the runs page.")
        )
    session.close()  # a transaction that only reads would keep the writer waiting
    with commands.choosing_seeds:
        with reading(state.engine) as now:
            first, second = (more_seeds.counted_seeds(now, run) for run in found)
        for run, seeds in zip(found, more_seeds.missing_seeds(first, second, further), strict=True):
            if seeds:
                commands.repeat(state, run, seeds)
    return RedirectResponse(back, status_code=303)


# The page ------------------------------------------------------------------------------------------------------------


def _pick(session: Session, query: CompareQuery, found: Sequence[Run]) -> PickPage:
    others = queries.find_runs(session, queries.RunFilter(limit=_PICKED))[0]
    offered = [*found, *(run for run in others if all(run.id != one.id for one in found))]
    start = queries.run_out(found[0]) if found else None
    return PickPage(query, {run.id for run in found}, [queries.run_out(run) for run in offered], start)


def _page(state: Runoff, session: Session, query: CompareQuery, runs: Sequence[Run]) -> ComparePage:
    margin, problem = query.margin_or_problem
    base = view.base_of(query.ids, query.base)
    loaded = load_comparison(state.settings.runs, session, runs, query.at, base, margin)
    comparison, shown = loaded.comparison, view.shown_runs(loaded)
    focus = view.pair_in_focus(comparison, shown, query.pair)
    a, b = focus.a.run, focus.b.run
    known = {run.id: epochs for run, epochs in zip(runs, loaded.epochs, strict=True)}
    repeats = _repeats(session, query, runs)
    epochs = known | epochs_of_runs(session, [run for run in repeats if run.id not in known])
    return ComparePage(
        query=query,
        shown=shown,
        comparison=comparison,
        base=base,
        focus=focus,
        pairs=view.pair_table(comparison, {run.run.id: run.place for run in shown}),
        more=more_seeds.more_seeds(session, a, b, focus.recipe),
        has_repeats=any(len(group.runs) > 1 for group in comparison.groups),
        to_accuracy=to_accuracy(query.to, loaded.epochs, [run.name for run in shown]),
        legend=curves.legend(*curves.curves_of(runs, epochs, repeats), query.value),
        evidence=_evidence(query, loaded, focus),
        images=images_of(state.settings.home, a, "test"),
        classes=list(a.class_names),
        config=view.config_rows(shown, comparison, base),
        offered=_offered(session, runs),
        margin_problem=problem,
        figure_version=".".join(str(run.version) for run in [*runs, *repeats]),
    )


def _repeats(session: Session, query: CompareQuery, runs: Sequence[Run]) -> list[Run]:
    """All repeats of the runs where means over seeds are wanted."""
    return queries.runs_of_groups(session, [run.group for run in runs]) if query.over == "seeds" else []


def _evidence(query: CompareQuery, loaded: LoadedComparison, focus: Focus) -> Evidence | None:
    """The images on which the two runs differ; None where they can't be compared."""
    pair = pair_images.pair_images(loaded, *focus.places)
    if focus.pair.interval is None or pair is None:
        return None
    selection = pair.selection(query.label, query.predicted)
    indices = selection.of(query.side).tolist()
    shown = indices[: query.shown]
    opened = query.image if query.image is not None and query.image < pair.a.num_images else None
    before, after = walls.neighbours(shown, opened)
    names = focus.a.run.class_names
    size = walls.num_classes(names, pair.a, pair.b)
    has_table = size <= confusion_matrix.MOST_CLASSES
    return Evidence(
        counts=selection.counts,
        tiles=pair.tiles(shown),
        total=len(indices),
        detail=None if opened is None else pair.tiles([opened])[0],
        more=len(indices) > query.shown and query.shown < TILES.most,
        previous=None if before is None else shown[before],
        next=None if after is None else shown[after],
        matrix=confusion_matrix.matrix_difference(pair.a, pair.b, pair.places, size) if has_table else [],
        classes=pair_images.class_table(pair, names),
    )


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
