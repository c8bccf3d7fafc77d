"""The compare page: which run is better, by how much, and is it real; and why there is no answer where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal
from urllib.parse import quote_plus, urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from app.compare import confusion_matrix, curves, verdicts, walls
from app.compare import view as parts
from app.compare.comparison import USEFUL_SEEDS, BudgetRow, Comparison, Pair, Recipe, accuracy_rows
from app.compare.load import MAX_COMPARED, load_comparison, runs_to_compare
from app.compare.view import Focus, ShownRun
from app.compare.walls import SharedTile
from app.draw.figures import Axis, plotly_json
from app.errors import Refused
from app.runs import commands as runs
from app.schemas import EpochOut, RunOut
from app.state import Runoff
from app.statistics import t_interval
from app.store import epochs as cost
from app.store import predictions, queries
from app.store.database import reading
from app.store.images import Images, images_of
from app.store.predictions import Predictions, PredictionsError
from app.store.tables import ACTIVE, Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from app.words import p_text, short_percent
from trainer.i18n import _

router = APIRouter()
TILES = walls.Steps(first=30)
SMOOTHING = (0.0, 0.5, 0.8, 0.9, 0.95)  # what the page offers
_MOST_FURTHER = 100
_SMALLEST_MARGIN = 0.0001  # points
_PICKED = 200  # runs that the picker offers


class CompareQuery(BaseModel):
    """What is compared and shown; it stands in the URL. ``margin`` is in points here."""

    run: list[str] = []
    base: str = ""
    at: str = "last"
    margin: str = "0.5"
    pair: str = ""  # the two runs in focus, "ID.ID"
    x: Axis = "epoch"
    smooth: float = Field(0.0, ge=0, le=curves.LARGEST_SMOOTHING)
    loss: Literal["linear", "log"] = "linear"
    over: Literal["runs", "seeds"] = "runs"
    value: Literal["last", "best"] = "last"  # the epoch whose values stand beside the names of the curves
    config: Literal["different", "all"] = "different"  # the fields listed
    to: str = ""  # the accuracy whose cost is shown, as ``typed_accuracy`` reads it
    side: Literal["a", "b", "wrong", "right", "all"] = "a"
    label: int | None = Field(None, ge=0, le=65_535)
    predicted: int | None = Field(None, ge=0, le=65_535)
    shown: int = Field(TILES.first, ge=1, le=TILES.most)
    image: int | None = Field(None, ge=0)

    @property
    def ids(self) -> list[str]:
        return list(dict.fromkeys(run for run in self.run if run))

    @property
    def view(self) -> curves.View:
        return curves.View(self.x, self.smooth, self.loss == "log")

    def pairs(self, **changes: Any) -> list[tuple[str, str]]:
        """The fields of the URL that are not at their defaults, as (name, value)."""
        values = self.model_copy(update={"run": self.ids, **changes}).model_dump(exclude_none=True)
        defaults = {name: info.get_default() for name, info in type(self).model_fields.items()}
        kept = {name: value for name, value in values.items() if name == "run" or value != defaults[name]}
        return [(n, str(one)) for n, value in kept.items() for one in (value if isinstance(value, list) else [value])]

    def url(self, **changes: Any) -> str:
        """The address with some of it changed."""
        found = "&".join(f"{name}={_quoted(value)}" for name, value in self.pairs(**changes))
        return "/compare" + ("?" + found if found else "")


_quoted = lru_cache(maxsize=1024)(quote_plus)  # a page of 50 runs has 140 addresses with all of their ids


# What the page shows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """The images, matrices and classes of the pair in focus. ``matrix`` is empty where there are too many classes."""

    counts: dict[str, int]
    tiles: list[SharedTile]
    total: int
    more: bool
    detail: SharedTile | None
    previous: int | None
    next: int | None
    matrix: list[list[confusion_matrix.DifferenceCell]]
    classes: walls.ClassTable


@dataclass(frozen=True)
class ToAccuracy:
    """What each run spent until it first reached an accuracy; ``accuracy`` is None where there is none to ask for."""

    accuracy: float | None
    rows: list[BudgetRow]
    by_run: list[bool]  # who reached it
    typed: str  # as the field shows it, in per cent
    problem: str

    @property
    def reached(self) -> bool:
        """Whether any run did."""
        return any(self.by_run)


@dataclass(frozen=True)
class LegendLine:
    """A curve with its values at its last or best epoch; ``seeds`` > 1 and an interval where it is a mean."""

    place: int
    name: str
    accuracy: float | None
    interval: tuple[float, float] | None
    loss: float | None
    seeds: int = 1


@dataclass(frozen=True)
class ComparePage(walls.NamesClasses):
    """Variables of compare.html."""

    query: CompareQuery
    shown: list[ShownRun]
    comparison: Comparison
    base: str | None
    focus: Focus
    pairs: parts.PairTable
    more: parts.MoreSeeds | None
    to_accuracy: ToAccuracy
    legend: list[LegendLine]
    has_repeats: bool
    evidence: Evidence | None
    images: Images | None
    classes: list[str]
    config: list[parts.ConfigRow]
    offered: list[tuple[str, str, float | None]]  # (id, name, test accuracy)
    margin_problem: str
    figure_version: str

    def url(self, **changes: Any) -> str:
        """A link within the page; whatever changes what is listed begins at the first tiles, with no image open."""
        if not changes.keys() & {"image", "shown", "x", "margin", "to", "smooth", "loss", "over", "value", "config"}:
            changes = {"image": None, "shown": TILES.first, **changes}
        return self.query.url(**changes)

    def fields(self, *asked: str) -> list[tuple[str, str]]:
        """The URL's fields for a form that asks for some of them itself."""
        return [(name, value) for name, value in self.query.pairs() if name not in asked]

    @cached_property
    def by_id(self) -> dict[str, ShownRun]:
        return {one.run.id: one for one in self.shown}

    @property
    def pair(self) -> Pair:
        return self.focus.pair

    @property
    def a(self) -> ShownRun:
        return self.focus.a

    @property
    def b(self) -> ShownRun:
        return self.focus.b

    @property
    def base_by_default(self) -> bool:
        """Whether nobody chose the base run."""
        return self.base is not None and self.base != self.query.base

    @property
    def defects(self) -> list[str]:
        """What is wrong with runs, each with its name in front."""
        return [f"{one.full_name}: {one.answers.defect}" for one in self.shown if one.answers.defect]

    @property
    def best_of(self) -> str:
        """The id of the run that was chosen as the best of several, or ""."""
        return self.comparison.best_of.run if self.comparison.best_of else ""

    @property
    def num_different(self) -> int:
        return sum(row.is_different for row in self.config)

    @property
    def without_flops(self) -> list[str]:
        """The runs that the axis of FLOPs leaves out."""
        if self.query.x != "flops":
            return []
        return [one.full_name for one in self.shown if one.run.epochs_done and one.run.flops is None]

    @property
    def is_detailed(self) -> bool:
        """Whether single curves show their bands and training losses."""
        return len(self.legend) <= curves.MOST_DETAILED

    @property
    def smoothing(self) -> list[float]:
        """The choices of smoothing, with the one in the address."""
        return sorted({*SMOOTHING, self.query.smooth})

    @property
    def same_colour(self) -> bool:
        """Whether the two runs in focus share a colour, so that something else must tell them apart."""
        return self.a.colour == self.b.colour

    def p_words(self, p: float) -> str:
        return p_text(p)

    def equivalence_words(self, p: float) -> str:
        return verdicts.equivalence_text(p, self.comparison.margin)

    def figure_url(self, figure: str) -> str:
        shown = [(n, v) for n, v in self.query.pairs() if n in ("run", "x", "smooth", "loss", "over")]
        return f"/compare/figures/{figure}.json?" + urlencode(shown)

    def export_url(self, what: str) -> str:
        """The address of the same comparison in the API: "" for JSON, else pairs.csv, epochs.csv or report."""
        fields = [("run", i) for i in self.query.ids] + [("at", self.query.at), ("margin", str(self.comparison.margin))]
        if self.base:
            fields.append(("base", self.base))
        if what == "" and self.to_accuracy.accuracy:
            fields.append(("accuracy", f"{self.to_accuracy.accuracy:g}"))
        if what == "report":
            fields.append(("pair", f"{self.pair.a}.{self.pair.b}"))
            fields += [(n, v) for n, v in self.query.pairs() if n in ("x", "smooth", "loss", "over")]
        return "/api/v1/compare" + (f"/{what}" if what else "") + "?" + urlencode(fields)


@dataclass(frozen=True)
class PickPage:
    """Variables of compare_pick.html: fewer than two runs are chosen."""

    query: CompareQuery
    chosen: set[str]
    offered: list[RunOut]
    start: RunOut | None
    most: int = MAX_COMPARED

    def reason(self, run: RunOut) -> str:
        """Why a run can't be told from the chosen one; "" where it can."""
        if not run.epochs_done:
            return _("no finished epoch yet")
        if self.start and self.start.test_fingerprint and run.test_fingerprint != self.start.test_fingerprint:
            return _("tested on other images")
        return ""


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
    epochs = queries.epochs_of_runs(session, [*found, *repeats])
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
    with runs.choosing_seeds:
        with reading(state.engine) as now:
            first, second = (_seeds(now, run) for run in found)
        for run, seeds in zip(found, parts.missing_seeds(first, second, further), strict=True):
            if seeds:
                runs.repeat(state, run, seeds)
    return RedirectResponse(back, status_code=303)


# The page ------------------------------------------------------------------------------------------------------------


def _pick(session: Session, query: CompareQuery, found: Sequence[Run]) -> PickPage:
    others = queries.find_runs(session, queries.RunFilter(limit=_PICKED))[0]
    offered = [*found, *(run for run in others if all(run.id != one.id for one in found))]
    start = queries.run_out(found[0]) if found else None
    return PickPage(query, {run.id for run in found}, [queries.run_out(run) for run in offered], start)


def _margin(query: CompareQuery) -> tuple[float, str]:
    """The margin as a fraction, and what is wrong with what was typed."""
    default = verdicts.DEFAULT_MARGIN
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
        legend=_legend(found, {**epochs, **queries.epochs_of_runs(session, missing)}, repeats, query.value),
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
    return predictions.load(runs.folder_of(state, one.run.id), one.epoch or 1)


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
