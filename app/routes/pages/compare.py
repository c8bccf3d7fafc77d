"""The compare page: which run is better, by how much, and is it real; and why there is no answer where there is none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, Field
from sqlmodel import Session, col, select

from app import charts, cost, predictions, queries, runs, templating, verdicts
from app.comparison import USEFUL_SEEDS, BudgetRow, Comparison, ConfigDifference, Group, Pair, Recipe, accuracy_rows
from app.deps import Reading, State
from app.errors import Refused
from app.predictions import Predictions, PredictionsError
from app.routes.pages import compare_parts as parts
from app.routes.pages.run import (
    MOST_CLASSES_IN_MATRIX,
    Images,
    curve_points,
    header_from,
    heat_of,
    images_of,
    value_words,
)
from app.schemas import EpochOut, RunOut, SweepIn
from app.state import Runoff
from app.tables import ACTIVE, Run
from trainer.config import FIELDS, MODELS, RunConfig
from trainer.i18n import _, ngettext

router = APIRouter()
MOST_RUNS = charts.MARKS
FIRST_TILES, MORE_TILES, MOST_TILES = 30, 100, 1030
_MOST_FURTHER = 100
_PICKED = 200  # runs that the picker offers


class CompareQuery(BaseModel):
    """What is compared and shown; it stands in the URL. ``margin`` is in points here."""

    run: list[str] = []
    base: str = ""
    at: str = "last"
    margin: str = "0.5"
    pair: str = ""  # the two runs in focus, "ID.ID"
    x: Literal["epoch", "seconds", "images"] = "epoch"
    to: str = ""  # the accuracy whose cost is shown, as ``typed_accuracy`` reads it
    side: Literal["a", "b", "wrong", "right", "all"] = "a"
    label: int | None = Field(None, ge=0, le=65_535)
    predicted: int | None = Field(None, ge=0, le=65_535)
    shown: int = Field(FIRST_TILES, ge=1, le=MOST_TILES)
    image: int | None = Field(None, ge=0)

    @property
    def ids(self) -> list[str]:
        return list(dict.fromkeys(run for run in self.run if run))

    def pairs(self, **changes: Any) -> list[tuple[str, str]]:
        """The fields of the URL that are not at their defaults, as (name, value)."""
        values = self.model_copy(update={"run": self.ids, **changes}).model_dump(exclude_none=True)
        defaults = {name: info.get_default() for name, info in type(self).model_fields.items()}
        kept = {name: value for name, value in values.items() if name == "run" or value != defaults[name]}
        return [(n, str(one)) for n, value in kept.items() for one in (value if isinstance(value, list) else [value])]

    def url(self, **changes: Any) -> str:
        """The address with some of it changed."""
        found = self.pairs(**changes)
        return "/compare" + ("?" + urlencode(found) if found else "")


# What the page shows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownRun:
    """One run on the page: its number (letter, colour, mark) and the names used in sentences."""

    place: int
    run: Run
    out: RunOut
    name: str  # short, as in sentences
    epoch: int | None

    @property
    def letter(self) -> str:
        return "ABCDEFGH"[self.place]

    @property
    def full_name(self) -> str:
        return self.run.name or self.run.id


@dataclass(frozen=True)
class Evidence:
    """The images and matrices of the pair in focus."""

    counts: dict[str, int]
    tiles: list[parts.SharedTile]
    total: int
    more: bool
    detail: parts.SharedTile | None
    previous: int | None
    next: int | None
    matrix: parts.MatrixDifference


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
class ConfigRow:
    """A field with the value of each run; ``differs`` marks those other than the base's."""

    field: str
    title: str
    values: list[str]
    differs: list[bool]


@dataclass(frozen=True)
class ComparePage:
    """Variables of compare.html."""

    query: CompareQuery
    shown: list[ShownRun]
    comparison: Comparison
    pair: Pair
    recipe: Recipe | None
    forest: charts.Pair | None
    seeds: charts.Pair | None
    spread: str
    more: parts.MoreSeeds | None
    groups: list[tuple[int, Group]]
    to_accuracy: ToAccuracy
    evidence: Evidence | None
    images: Images | None
    classes: list[str]
    differing: list[ConfigRow]
    same: list[ConfigRow]
    offered: list[Run]
    margin_problem: str
    figure_version: str
    when: str

    def url(self, **changes: Any) -> str:
        """A link within the page; whatever changes what is listed begins at the first tiles, with no image open."""
        if not changes.keys() & {"image", "shown", "x", "margin", "to"}:
            changes = {"image": None, "shown": FIRST_TILES, **changes}
        return self.query.url(**changes)

    @cached_property
    def by_id(self) -> dict[str, ShownRun]:
        return {one.run.id: one for one in self.shown}

    @property
    def a(self) -> ShownRun:
        return self.by_id[self.pair.a]

    @property
    def b(self) -> ShownRun:
        return self.by_id[self.pair.b]

    @property
    def winner(self) -> ShownRun | None:
        return {"a_better": self.a, "b_better": self.b}.get(self.pair.verdict)

    @property
    def long_names(self) -> bool:
        return any(len(name) > 3 for name in self.classes)

    @property
    def hidden(self) -> list[tuple[str, str]]:
        """The URL's fields for forms, without those that the forms ask for."""
        return [
            (n, v) for n, v in self.query.pairs() if n not in ("margin", "at", "label", "predicted", "shown", "image")
        ]

    def class_name(self, number: int) -> str:
        return self.classes[number] if number < len(self.classes) else str(number)

    def p_words(self, p: float) -> str:
        return verdicts.p_text(p)

    def figure_url(self, figure: str) -> str:
        return f"/compare/figures/{figure}.json?" + urlencode(
            [("run", i) for i in self.query.ids] + [("x", self.query.x)]
        )

    @property
    def report_url(self) -> str:
        fields = [("run", i) for i in self.query.ids] + [("at", self.query.at), ("margin", str(self.comparison.margin))]
        if self.to_accuracy.accuracy:
            fields.append(("accuracy", f"{self.to_accuracy.accuracy:g}"))
        return "/api/v1/compare?" + urlencode(fields + ([("base", self.query.base)] if self.query.base else []))


@dataclass(frozen=True)
class PickPage:
    """Variables of compare_pick.html: fewer than two runs are chosen."""

    query: CompareQuery
    chosen: set[str]
    offered: list[RunOut]
    start: RunOut | None

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
    found = queries.runs_to_compare(session, query.ids)
    if len(found) > MOST_RUNS:
        message = _("This page shows at most {limit} runs; you chose {n}. Leave some out, or ask GET /api/v1/compare.")
        raise Refused(message.format(limit=MOST_RUNS, n=len(found)))
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
def figure(
    session: Reading, figure: Literal["accuracy", "loss"], run: Annotated[list[str], Query(min_length=1, max_length=MOST_RUNS)],
    x: Literal["epoch", "seconds", "images"] = "epoch",
) -> Response:  # fmt: skip
    """The curves of all runs for plotly.js."""
    curves = _curves(session, queries.runs_to_compare(session, run))
    return JSONResponse(
        charts.accuracy_figure(curves, axis=x) if figure == "accuracy" else charts.loss_figure(curves, axis=x)
    )


@router.post("/compare/repeats")
def add_repeats(
    state: State, session: Reading, a: Annotated[str, Form()], b: Annotated[str, Form()],
    further: Annotated[int, Form(ge=1, le=_MOST_FURTHER)],
) -> Response:  # fmt: skip
    """Start the seeds that both recipes lack; on to the list of runs."""
    first, second = queries.runs_to_compare(session, [a, b])
    missing = parts.missing_seeds(_seeds(session, first), _seeds(session, second), further)
    session.close()  # a transaction that only reads would keep the writer waiting
    for run, seeds in zip((first, second), missing, strict=True):
        if seeds:
            runs.start_sweep(state, _sweep(run, seeds))
    return RedirectResponse("/runs", status_code=303)


def _sweep(run: Run, seeds: list[int]) -> SweepIn:
    """The run again with these seeds, named as its repeats are."""
    base = {name: value for name, value in run.config.items() if value is not None and name != "seed"}
    stem = re.sub(r"[\s,;·-]*\bseed\s+\d+$", "", run.name, flags=re.IGNORECASE) or runs.default_name(
        RunConfig(**run.config)
    )
    name = stem if len(seeds) > 1 else f"{stem}, {_('seed {seed}').format(seed=seeds[0])}"
    return SweepIn(base=base, grid={"seed": seeds}, name=name, tags=run.tags)


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
    if not 0 < points <= 50:
        return default, _("The margin must be above 0 and at most 50 points. You typed {typed}.").format(
            typed=query.margin[:20]
        )
    return points / 100, ""


def _page(state: Runoff, session: Session, query: CompareQuery, found: Sequence[Run]) -> ComparePage:
    margin, problem = _margin(query)
    base = query.base if query.base in query.ids else None
    comparison = queries.load_comparison(state, session, query.ids, query.at, base, margin)
    shown = [
        ShownRun(place, run, queries.run_out(run), comparison.names[run.id], queries.epoch_at(run, query.at))
        for place, run in enumerate(found)
    ]
    by_id = {one.run.id: one for one in shown}
    pair = _focus(query, comparison)
    a, b = by_id[pair.a], by_id[pair.b]
    recipe = _recipe(comparison, a.run, b.run)
    groups = [(_place(shown, group), group) for group in comparison.groups]
    in_focus = [(place, group) for place, group in groups if group.group in (a.run.group, b.run.group)]
    epochs = [queries.epochs_out(session, run) for run in found]
    return ComparePage(
        query=query, shown=shown, comparison=comparison, pair=pair, recipe=recipe,
        forest=parts.forest(pair, recipe, _details(a, b, recipe), (a.place, b.place), comparison),
        seeds=parts.seeds_chart(in_focus, _seeds_caption([group for _i, group in in_focus])),
        spread=parts.spread_sentence([group for _i, group in in_focus]), more=_more(session, a.run, b.run, recipe),
        groups=in_focus, to_accuracy=_to_accuracy(query.to, epochs, [one.name for one in shown]),
        evidence=_evidence(state, query, a, b, pair), images=images_of(state, a.run, "test"),
        classes=list(a.run.class_names), differing=_differing(shown, comparison, base), same=_same(shown, comparison),
        offered=_offered(session, found), margin_problem=problem,
        figure_version=".".join(str(run.version) for run in found), when=_when(a, b),
    )  # fmt: skip


def _focus(query: CompareQuery, comparison: Comparison) -> Pair:
    wanted = set(query.pair.split("."))
    return next((pair for pair in comparison.pairs if {pair.a, pair.b} == wanted), comparison.pairs[0])


def _recipe(comparison: Comparison, a: Run, b: Run) -> Recipe | None:
    """What seeds say of the two groups, a first; None for repeats of one recipe."""
    wanted = {a.group, b.group}
    found = next((recipe for recipe in comparison.recipes if {recipe.a, recipe.b} == wanted), None)
    return parts.turned(found, a.group) if found else None


def _place(shown: Sequence[ShownRun], group: Group) -> int:
    return next(one.place for one in shown if one.run.group == group.group)


def _curves(session: Session, found: Sequence[Run]) -> list[charts.RunCurve]:
    return [
        charts.RunCurve(i, run.name or run.id, curve_points(queries.epochs_out(session, run)))
        for i, run in enumerate(found)
    ]


def _to_accuracy(typed: str, epochs: Sequence[Sequence[EpochOut]], names: Sequence[str]) -> ToAccuracy:
    wanted, problem = cost.typed_accuracy(typed)
    accuracy = wanted or cost.highest_of_all(epochs)
    if accuracy is None:
        return ToAccuracy(None, [], [], typed, problem)
    costs = [cost.to_accuracy(one, accuracy) for one in epochs]
    shown = typed if problem else templating.short_percent(accuracy)
    by_run = [one.epoch is not None for one in costs]
    return ToAccuracy(accuracy, accuracy_rows(costs, names), by_run, shown, problem)


def _epochs_words(epoch: int | None) -> str:
    return ngettext("after {n} epoch", "after {n} epochs", epoch or 0).format(n=f"{epoch or 0:,}")


def _details(a: ShownRun, b: ShownRun, recipe: Recipe | None) -> tuple[str, str]:
    """The second lines of the forest plot."""
    seeds = _("seed {seed}").format(seed=a.run.seed) if a.run.seed == b.run.seed else _("seeds {a} and {b}").format(
        a=a.run.seed, b=b.run.seed
    )  # fmt: skip
    first = f"{seeds} {_epochs_words(a.epoch)}" if a.epoch == b.epoch else seeds
    first = _("{what}, paired").format(what=first)
    return first, verdicts.seeds_text(recipe.n_a, recipe.n_b) if recipe else ""


def _seeds_caption(groups: Sequence[Group]) -> str:
    epochs = {group.epoch for group in groups if group.epoch is not None}
    if len(epochs) == 1:
        return _("test accuracy {when}, %").format(when=_epochs_words(epochs.pop()))
    return _("test accuracy, %")


def _when(a: ShownRun, b: ShownRun) -> str:
    """ "after epoch 5, on the 10,000 test images of mnist, pixels permuted" """
    if a.epoch is None or b.epoch is None:
        return _("before the first epoch")
    words = (
        _("after epoch {n}").format(n=a.epoch) if a.epoch == b.epoch
        else _("after epochs {a} and {b}").format(a=a.epoch, b=b.epoch)
    )  # fmt: skip
    if a.run.test_fingerprint != b.run.test_fingerprint:
        return words
    words = _("{when}, on the {n} test images of {dataset}").format(
        when=words, n=f"{a.run.num_test or 0:,}", dataset=a.run.dataset
    )
    both = a.run.config.get("permute_pixels") and b.run.config.get("permute_pixels")
    return _("{words}, pixels permuted").format(words=words) if both else words


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


def _evidence(state: Runoff, query: CompareQuery, a: ShownRun, b: ShownRun, pair: Pair) -> Evidence | None:
    """The images on which the two runs differ; None where they can't be compared."""
    if pair.interval is None or a.epoch is None or b.epoch is None:
        return None
    try:
        mine, other = _answers(state, a), _answers(state, b)
    except PredictionsError:
        return None
    indices = parts.separating(mine, other, query.side, query.label, query.predicted)
    both = [(a.place, mine), (b.place, other)]
    detail = (
        parts.shared_tiles([query.image], both)[0]
        if query.image is not None and query.image < mine.num_images
        else None
    )
    order = indices[: query.shown].tolist()
    at = order.index(query.image) if query.image in order else None
    size = max(len(a.run.class_names), *(int(x.max()) + 1 for x in (mine.labels, mine.predicted, other.predicted)))
    counts = {side: len(parts.separating(mine, other, side, query.label, query.predicted)) for side in parts.SIDES}
    return Evidence(
        counts=counts, tiles=parts.shared_tiles(order, both), total=len(indices), detail=detail,
        more=len(indices) > query.shown and query.shown < MOST_TILES, previous=order[at - 1] if at else None,
        next=order[at + 1] if at is not None and at + 1 < len(order) else None,
        matrix=parts.matrix_difference(mine, other, (a.place, b.place), size, heat_of, MOST_CLASSES_IN_MATRIX),
    )  # fmt: skip


def _answers(state: Runoff, one: ShownRun) -> Predictions:
    return predictions.load(runs.folder_of(state, one.run.id), one.epoch or 1)


# Configuration -------------------------------------------------------------------------------------------------------


def _differing(shown: Sequence[ShownRun], comparison: Comparison, base: str | None) -> list[ConfigRow]:
    reference = next((one.place for one in shown if one.run.id == base), len(shown) - 1 if len(shown) == 2 else 0)
    return [_config_row(difference, shown, reference) for difference in comparison.config_differences]


def _config_row(difference: ConfigDifference, shown: Sequence[ShownRun], reference: int) -> ConfigRow:
    values = [
        _value(difference.field, value, one.run.model) for value, one in zip(difference.values, shown, strict=True)
    ]
    differs = [value != difference.values[reference] for value in difference.values]
    return ConfigRow(difference.field, difference.title, values, differs)


def _value(field: str, value: Any, model: str) -> str:
    if value is None:
        return "–"
    if field == "width":
        return f"{value} {_(MODELS[model].width_unit)}"
    return value_words(value)


def _same(shown: Sequence[ShownRun], comparison: Comparison) -> list[ConfigRow]:
    differing = {difference.field for difference in comparison.config_differences}
    first = shown[0].run
    return [
        ConfigRow(
            name,
            _(info.title or name),
            [_value(name, first.config[name], first.model)] * len(shown),
            [False] * len(shown),
        )
        for name, info in FIELDS.items()
        if name not in differing and first.config.get(name) is not None
    ]


def _offered(session: Session, found: Sequence[Run]) -> list[Run]:
    """Runs that can be added: with an epoch, tested on the same images, newest first."""
    if len(found) >= MOST_RUNS:
        return []
    ids = [run.id for run in found]
    query = (
        select(Run)
        .where(col(Run.id).not_in(ids), col(Run.epochs_done) > 0, col(Run.archived).is_(False))
        .where(Run.test_fingerprint == found[0].test_fingerprint)
        .order_by(col(Run.created_at).desc())
        .limit(_PICKED)
    )
    return list(session.exec(query).all())
