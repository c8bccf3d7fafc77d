"""The page of a new run: its form, checked by the server after each change, and the start of what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session
from starlette.datastructures import FormData

from app.draw.form import ScheduleCurve, learning_rates, net_chart, schedule_chart
from app.draw.markers import MARKS
from app.errors import Refused
from app.forms import read as forms
from app.routes.pages.new_view import FormError, FormWarning, Net, NewPage, Schedule, Summary
from app.runs import commands
from app.runs.estimate import estimate
from app.runs.executors import ExecutorUnavailable
from app.runs.executors import Refused as NotDescribed
from app.runs.plan import Plan, plan
from app.schemas import SweepIn
from app.state import Runoff
from app.store import queries
from app.store.tables import Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from trainer import schedule
from trainer.config import FIELDS, MODELS, FieldProblem, RunConfig, resolved_width
from trainer.datasets import catalogue
from trainer.datasets.catalogue import Dataset
from trainer.i18n import _
from trainer.presets import PRESETS

router = APIRouter(include_in_schema=False)
_MOST_CURVES = MARKS


async def _form(request: Request) -> FormData:
    return await request.form()


Sent = Annotated[FormData, Depends(_form)]


# Routes --------------------------------------------------------------------------------------------------------------


@router.get("/runs/new")
def show(request: Request, state: State, session: Reading) -> Response:
    """The form: from a preset, from an earlier run (``?from=ID``), with fields from the URL in place."""
    typed = _begin(session, request.query_params)
    return _answer(request, state, session, typed)


@router.post("/runs/new")
def send(request: Request, state: State, session: Reading, sent: Sent) -> Response:
    """Check the form, or start its runs: 303 to the run, or to the sweep."""
    data = {name: value for name, value in sent.items() if isinstance(value, str)}
    lists = {name: [v for v in sent.getlist(name) if isinstance(v, str)] for name in sent}
    typed = forms.read(data, lists)
    other = _other_source(session, typed, data)
    if other is not None:
        return _answer(request, state, session, other, reset=True)
    if "=" in data.get("fix", ""):
        name, _equals, text = data["fix"].partition("=")
        typed = forms.with_query(typed, {name: text})
        return _answer(request, state, session, typed, reset=True)
    if "check" in request.query_params:
        return _answer(request, state, session, typed)
    return _start(request, state, session, typed)


def _begin(session: Session, query: Mapping[str, str]) -> forms.Typed:
    """Where the form begins. Raises ``NotFound`` for ``?from=`` of a run that is not there."""
    if query.get("from"):
        run = queries.get_run(session, query["from"])
        typed = forms.from_run(run.config, run_id=run.id, name=run.name, tags=run.tags)
    else:
        name = query.get("preset", "")
        typed = forms.from_preset(PRESETS.get(name) or next(iter(PRESETS.values())))
    return forms.with_query(typed, query)


def _source(typed: forms.Typed) -> str:
    """What the values of the form came from, as the hidden field ``loaded`` keeps it."""
    return f"run:{typed.origin}" if typed.preset == forms.FROM_RUN else f"preset:{typed.preset or ''}"


def _other_source(session: Session, typed: forms.Typed, data: Mapping[str, str]) -> forms.Typed | None:
    """A new beginning where another preset or another earlier run was chosen; else None."""
    if typed.preset == forms.FROM_RUN:
        chosen = data.get("from_run", "")
        return _begin(session, {"from": chosen}) if chosen and chosen != typed.origin else None
    if typed.preset and f"preset:{typed.preset}" != data.get("loaded", ""):
        return _begin(session, {"preset": typed.preset})
    return None


def _answer(
    request: Request,
    state: Runoff,
    session: Session,
    typed: forms.Typed,
    planned: FormPlan | None = None,
    *,
    reset: bool = False,
    status_code: int = 200,
) -> Response:
    page = _page(state, session, typed, planned or _planned(state, typed), started=status_code != 200)
    response = templating.render(
        request,
        "new.html",
        page,
        status_code=status_code,
        version=queries.data_version(session),
        refresh="header",
        header=header_from(state, queries.status_counts(session)),
    )
    if reset:  # what was ticked before must not survive in the browser
        response.headers["HX-Reswap"] = "outerHTML"
        response.headers["HX-Replace-Url"] = _address(typed)
    return response


def _address(typed: forms.Typed) -> str:
    if typed.preset == forms.FROM_RUN and typed.origin:
        return f"/runs/new?from={typed.origin}"
    return f"/runs/new?preset={typed.preset}" if typed.preset in PRESETS else "/runs/new"


def _start(request: Request, state: Runoff, session: Session, typed: forms.Typed) -> Response:
    planned = _planned(state, typed)
    if planned.plan is None or planned.problems or not _is_confirmed(typed, len(planned.plan.runs)):
        return _answer(request, state, session, typed, planned, status_code=422)
    started = commands.start(state, planned.plan)
    address = f"/sweeps/{started.sweep}" if started.sweep else f"/runs/{started.runs[0].id}"
    return RedirectResponse(address, status_code=303)


def _is_confirmed(typed: forms.Typed, num_runs: int) -> bool:
    """Whether this many runs may start: few may always, many where the box for that number is ticked."""
    return num_runs <= forms.MOST_WITHOUT_QUESTION or typed.confirmed == str(num_runs)


# The page ------------------------------------------------------------------------------------------------------------


def _page(state: Runoff, session: Session, typed: forms.Typed, planned: FormPlan, *, started: bool) -> NewPage:
    # What asks the trainer comes before what reads the database: a read transaction must not wait for another process.
    datasets = catalogue.list_datasets(state.settings.home)
    dataset = next((d for d in datasets if d.name == typed.values["dataset"].partition(",")[0].strip()), None)
    controls = _controls(state, typed, planned.problems)
    net = _net(state, planned.plan, dataset)
    return NewPage(
        typed=typed, loaded=_source(typed), controls=controls, presets=list(PRESETS.values()),
        earlier=_earlier(session, typed), datasets=datasets, dataset=dataset, net=net,
        schedule=_schedule(planned.plan, dataset), seeds=forms.seeds_sentence(typed),
        summary=_summary(state, session, typed, planned, started=started),
    )  # fmt: skip


@dataclass(frozen=True)
class FormPlan:
    """What the form would start: the plan and the request that it was made from, and the problems of the form.

    With problems, the plan leaves out the faulty fields; it is None where the rest can't be planned either.
    """

    plan: Plan | None
    request: SweepIn | None
    problems: list[FieldProblem]


def _planned(state: Runoff, typed: forms.Typed) -> FormPlan:
    home = state.settings.home
    wish = forms.wish(typed)
    problems = wish.problems
    if wish.sweep is not None:
        try:
            return FormPlan(plan(home, wish.sweep, is_sweep=not forms.is_one_run(wish.sweep)), wish.sweep, [])
        except Refused as refused:
            problems = refused.errors
    rest = forms.wish(forms.healed(typed, problems)).sweep
    try:
        return FormPlan(plan(home, rest) if rest else None, rest, problems)
    except Refused:
        return FormPlan(None, rest, problems)


def _controls(state: Runoff, typed: forms.Typed, problems: list[FieldProblem]) -> dict[str, forms.Control]:
    controls = forms.controls(typed, problems)
    device = controls["device"]
    choices = _device_choices(state, device.text)
    return controls | {"device": replace(device, kind="choice", choices=choices)} if choices else controls


def _device_choices(state: Runoff, text: str) -> list[forms.Choice]:
    """What this machine has; empty while the trainer is not there to tell, or where something else was typed."""
    try:
        devices = (state.executor.known_devices() or state.executor.devices()) if state.executor.ready() else []
    except ExecutorUnavailable:
        return []
    titles = {str(device["name"]): str(device["title"]) for device in devices}
    if not titles:
        return []
    best = next((title for name, title in titles.items() if name != "cpu"), next(iter(titles.values())))
    labels = {"auto": _("auto ({device})").format(device=best), **titles}
    if text not in labels:
        return []
    return [forms.Choice(name, label, name == text) for name, label in labels.items()]


def _earlier(session: Session, typed: forms.Typed) -> list[Run]:
    """Runs to begin from, newest first; read only where "As an earlier run" is chosen."""
    if typed.preset != forms.FROM_RUN:
        return []
    found = queries.find_runs(session, queries.RunFilter(limit=100))[0]
    if typed.origin and all(run.id != typed.origin for run in found):
        origin = session.get(Run, typed.origin)
        found = [origin, *found] if origin else found
    return found


# The net -------------------------------------------------------------------------------------------------------------


def _net(state: Runoff, plan: Plan | None, dataset: Dataset | None) -> Net:
    if plan is None or dataset is None:
        return Net(missing=_("The layers appear once data set and model are chosen."))
    if dataset.image_shape is None or not dataset.class_names:
        return Net(missing=_("The layers appear once the images are here: their size is not known yet."))
    config = plan.runs[0].config
    shape, classes = tuple(dataset.image_shape), len(dataset.class_names)
    try:
        told = _described(state, config, shape, classes)
        other = _comparison(state, config, shape, classes)
    except ExecutorUnavailable:
        return Net(missing=_("The trainer is starting. The layers appear in a moment."), waiting=True)
    except NotDescribed as problem:
        return Net(missing=str(problem))
    shapes = [told["input_shape"], *(layer["shape"] for layer in told["layers"])]
    return Net(
        layers=told["layers"], input_shape=told["input_shape"], num_parameters=told["num_parameters"],
        multiply_adds=told["multiply_adds"], chart=net_chart(_distinct(shapes)), comparison=other,
    )  # fmt: skip


def _distinct(shapes: list[list[int]]) -> list[list[int]]:
    """Without a shape that only repeats the one before; at most 12, the ends kept."""
    kept = [shape for number, shape in enumerate(shapes) if number == 0 or shape != shapes[number - 1]]
    return kept if len(kept) <= 12 else [*kept[:8], *kept[-4:]]


def _described(state: Runoff, config: RunConfig, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    """The trainer's description, asked once per net; all other fields are the same to it."""
    return _ask(state.executor, config.model, resolved_width(config), shape, classes)


@lru_cache(maxsize=256)
def _ask(executor: Any, model: str, width: int, shape: tuple[int, ...], classes: int) -> dict[str, Any]:
    config = RunConfig(dataset="any", model=model, width=width)
    answer: dict[str, Any] = executor.describe(config.model_dump(), list(shape), classes)
    return answer


def _comparison(state: Runoff, config: RunConfig, shape: tuple[int, ...], classes: int) -> str:
    """The size of the plainest net beside it: fc, or cnn beside fc."""
    other = "cnn" if config.model == "fc" else "fc"
    told = _ask(state.executor, other, MODELS[other].default_width, shape, classes)
    return _("{model}, width {width}: {parameters} parameters, {adds} multiply-adds").format(
        model=other, width=MODELS[other].default_width, parameters=f"{told['num_parameters']:,}",
        adds=f"{told['multiply_adds']:,}",
    )  # fmt: skip


# The schedule --------------------------------------------------------------------------------------------------------


def _steps_per_epoch(config: RunConfig, dataset: Dataset) -> int:
    return max(schedule.steps_per_epoch(dataset.num_train or 0, config), 1)


def _schedule(plan: Plan | None, dataset: Dataset | None) -> Schedule | None:
    """One curve for each schedule of the plan, the highest first; None where the number of steps is not known."""
    if plan is None or dataset is None or not dataset.num_train:
        return None
    configs = {_schedule_key(run.config): run.config for run in reversed(plan.runs)}
    chosen = sorted(configs.values(), key=lambda config: -config.learning_rate)[:_MOST_CURVES]
    longest = max(chosen, key=lambda config: config.epochs * _steps_per_epoch(config, dataset))
    per_epoch = _steps_per_epoch(longest, dataset)
    curves = []
    for index, config in enumerate(chosen):
        total = config.epochs * _steps_per_epoch(config, dataset)
        points = learning_rates(config, total)
        curves.append(ScheduleCurve(index, _schedule_label(config, chosen), points))
    chart = schedule_chart(curves, steps_per_epoch=per_epoch, total_steps=longest.epochs * per_epoch)
    return Schedule(chart, [(curve.index, curve.label) for curve in curves] if len(curves) > 1 else [], per_epoch)


_SCHEDULE_FIELDS = ("learning_rate", "schedule", "peak_at", "epochs", "batch_size")


def _schedule_key(config: RunConfig) -> tuple[Any, ...]:
    return tuple(getattr(config, name) for name in _SCHEDULE_FIELDS)


def _schedule_label(config: RunConfig, among: list[RunConfig]) -> str:
    """The values that tell this curve from the others."""
    varying = [name for name in _SCHEDULE_FIELDS if len({getattr(other, name) for other in among}) > 1]
    return ", ".join(forms.text_of(getattr(config, name)) or _("none") for name in varying)


# The summary ---------------------------------------------------------------------------------------------------------


def _summary(state: Runoff, session: Session, typed: forms.Typed, planned: FormPlan, *, started: bool) -> Summary:
    sweep, runs = planned.request, planned.plan.runs if planned.plan else []
    count = len(runs)
    needs_tick = count > forms.MOST_WITHOUT_QUESTION
    is_confirmed = _is_confirmed(typed, count)
    errors = [_error(problem) for problem in planned.problems]
    if started and not errors and not is_confirmed:
        errors = [
            FormError(_("Many runs"), _("Tick that you mean to start {n} runs.").format(n=f"{count:,}"), "confirmed")
        ]
    counts = queries.status_counts(session)
    return Summary(
        count=count,
        sentence=forms.sentence(sweep) if sweep else "",
        estimate=estimate(session, state.settings.home, [run.config for run in runs]),
        num_ahead=counts["queued"] + counts["running"],
        errors=errors,
        warnings=_warnings(planned.plan, sweep),
        needs_tick=needs_tick,
        ticked=needs_tick and is_confirmed,
        same_as=forms.same_as(sweep, typed.preset) if sweep and not planned.problems else None,
    )


def _error(problem: FieldProblem) -> FormError:
    name = forms.form_field(problem.field)
    own = {"repeats": _("Seeds for each configuration"), "name": _("Name"), "tags": _("Tags")}
    if name in FIELDS:
        return FormError(_(FIELDS[name].title or name), problem.message, name)
    return FormError(own.get(name, _("Form")), problem.message, name if name in own else "")


def _warnings(plan: Plan | None, sweep: SweepIn | None) -> list[FormWarning]:
    said = [FormWarning(_("Check this"), text) for text in plan.warnings] if plan else []
    candidates = forms.choosing_by_test(sweep) if sweep else 0
    if candidates > 1:
        said.append(
            FormWarning(
                _("The best of {n} will look too good").format(n=candidates),
                _(
                    "Choosing by test accuracy makes the winner's number too high. "
                    "Hold out validation images and choose by those."
                ),
                fix="validation_fraction=0.1",
                fix_words=_("Hold out {percent} %").format(percent=10),
            )
        )
    return said
