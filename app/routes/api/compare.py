"""Comparing runs: which is better, by how much, and is it real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, TypeAdapter

from app.compare import csv_files, curves, report
from app.compare.load import MAX_COMPARED, LoadedComparison, load_comparison, runs_to_compare
from app.compare.pair_images import ClassDifference, class_differences, pair_images
from app.compare.shapes import DEFAULT_MARGIN, Comparison
from app.compare.view import base_of
from app.draw.figures import Axis
from app.errors import Refused
from app.schemas import AccuracyCost, EpochOut, RunOut
from app.store import epochs as cost
from app.store import queries
from app.web.deps import Reading, State
from trainer.config import FieldProblem
from trainer.i18n import _

router = APIRouter(tags=["compare"])

Runs = Annotated[list[str], Query(min_length=1, max_length=MAX_COMPARED, description="run id, several times")]
At = Annotated[str, Query(description="last, best or an epoch")]
Base = Annotated[str | None, Query(description="compare all others with this run only")]
Margin = Annotated[float, Query(gt=0, le=0.5, description="a difference too small to matter, as a fraction")]


class ByClass(BaseModel):
    """A pair class by class; classes without images are left out. Each interval has ``level``: together they hold in 95 %."""

    a: str
    b: str
    level: float
    classes: list[ClassDifference]


@dataclass(frozen=True, kw_only=True)
class CompareOut(Comparison):
    """The comparison with the runs compared, their epochs (``curves``: run id -> epochs) and what an accuracy cost each."""

    runs: list[RunOut]
    curves: dict[str, list[EpochOut]]
    to_accuracy: list[AccuracyCost]  # in the order of the runs
    by_class: list[ByClass]  # of the pairs that can be compared, where asked for


_compare_out = TypeAdapter(CompareOut)


@router.get("/compare", response_model=CompareOut)
def compare_runs(
    state: State,
    session: Reading,
    run: Runs,
    at: At = "last",
    base: Base = None,
    margin: Margin = DEFAULT_MARGIN,
    accuracy: Annotated[
        float | None,
        Query(gt=0, le=1, description="for to_accuracy; default: the highest whole percent that all runs reached"),
    ] = None,
    classes: Annotated[bool, Query(description="whether to include per-class differences in by_class")] = False,
) -> Response:
    """Compare runs; a pair's difference is the accuracy of ``a`` minus that of ``b``."""
    shown = runs_to_compare(session, run)
    loaded = load_comparison(state.settings.runs, session, shown, at, base, margin)
    target = accuracy or cost.highest_of_all(loaded.epochs)
    found = CompareOut(
        **vars(loaded.comparison),
        runs=[queries.run_out(one) for one in shown],
        curves={one.id: epochs for one, epochs in zip(shown, loaded.epochs, strict=True)},
        to_accuracy=[cost.to_accuracy(epochs, target) for epochs in loaded.epochs] if target else [],
        by_class=_by_class(loaded) if classes else [],
    )
    return Response(_compare_out.dump_json(found), media_type="application/json")  # once: 1,225 pairs take a while


def _by_class(loaded: LoadedComparison) -> list[ByClass]:
    places = {run.id: place for place, run in enumerate(loaded.runs)}
    result = []
    for pair in loaded.comparison.pairs:
        images = pair_images(loaded, places[pair.a], places[pair.b])
        if pair.verdict != "not_comparable" and images is not None:
            classes, level = class_differences(images, loaded.runs[places[pair.a]].class_names)
            result.append(ByClass(a=pair.a, b=pair.b, level=level, classes=classes))
    return result


@router.get("/compare/pairs.csv", response_class=Response)
def pairs_csv(
    state: State, session: Reading, run: Runs, at: At = "last", base: Base = None, margin: Margin = DEFAULT_MARGIN
) -> Response:
    """The pairs of a comparison as CSV, one line each."""
    shown = runs_to_compare(session, run)
    loaded = load_comparison(state.settings.runs, session, shown, at, base, margin)
    return _csv(csv_files.pairs_csv(loaded.comparison), "runoff-pairs.csv")


@router.get("/compare/epochs.csv", response_class=Response)
def epochs_csv(session: Reading, run: Runs) -> Response:
    """The epochs of all runs as CSV, one line each."""
    shown = runs_to_compare(session, run)
    epochs = cost.epochs_of_runs(session, shown)
    return _csv(csv_files.epochs_csv(shown, [epochs[one.id] for one in shown]), "runoff-epochs.csv")


def _csv(data: bytes, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type="text/csv; charset=utf-8", headers=headers)


@router.get("/compare/report", response_class=HTMLResponse)
def make_report(
    state: State,
    session: Reading,
    run: Runs,
    at: At = "last",
    base: Base = None,
    margin: Margin = DEFAULT_MARGIN,
    pair: Annotated[str, Query(description="the two runs in focus, as ID.ID; default: the first pair")] = "",
    x: Annotated[Axis, Query(description="the horizontal axis of the curves")] = "epoch",
    smooth: Annotated[float, Query(ge=0, le=curves.LARGEST_SMOOTHING, description="exponential smoothing")] = 0.0,
    loss: Annotated[Literal["linear", "log"], Query(description="the axis of the loss")] = "linear",
    over: Annotated[Literal["runs", "seeds"], Query(description="single runs, or means over repeats")] = "runs",
) -> HTMLResponse:
    """The comparison as a printable report in one self-contained HTML file."""
    shown = runs_to_compare(session, run)
    if len(shown) < 2:
        problem = FieldProblem(field="run", message=_("A report needs at least two runs. Add another one."))
        raise Refused.fields([problem])
    base = base or base_of([one.id for one in shown], "")
    loaded = load_comparison(state.settings.runs, session, shown, at, base, margin)
    view = curves.View(x, smooth, loss == "log")
    made = report.make_report(
        state, session, loaded, base=base, at=at, pair=pair, view=view, over_seeds=over == "seeds"
    )
    headers = {
        "Content-Disposition": 'inline; filename="runoff-report.html"',
        "Content-Security-Policy": made.policy,
        "Cache-Control": "no-store",
    }
    return HTMLResponse(made.html(), headers=headers)
