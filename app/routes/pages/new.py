"""The page of a new run: its form, checked by the server after each change, and the start of what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from sqlmodel import Session
from starlette.datastructures import FormData

from app.forms.check import CheckedForm, check
from app.forms.preview import net_of, schedule_of
from app.forms.read import FROM_RUN, Typed, form_field, from_preset, from_run, read_form, with_query
from app.forms.same_as import same_as
from app.forms.show import MOST_UNCONFIRMED, choosing_by_test, controls, seeds_sentence, sentence
from app.routes.pages.new_view import FormError, FormWarning, NewPage, Summary
from app.runs import commands
from app.runs.estimate import estimate
from app.runs.executors import ExecutorUnavailable
from app.state import Runoff, TrainerHost
from app.store import queries
from app.store.tables import Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from trainer.config import FIELDS, FieldProblem
from trainer.datasets import catalogue
from trainer.i18n import _
from trainer.presets import PRESETS

router = APIRouter(include_in_schema=False)


async def _form(request: Request) -> FormData:
    return await request.form()


Sent = Annotated[FormData, Depends(_form)]


# Routes --------------------------------------------------------------------------------------------------------------


@router.get("/runs/new")
def show(request: Request, state: State, session: Reading) -> Response:
    """The form: from a preset, from an earlier run (``?from=ID``), with fields from the URL in place."""
    typed = _begin(session, request.query_params)
    return _answer(request, state, session, check(state.settings.home, typed))


@router.post("/runs/new")
def send(request: Request, state: State, session: Reading, sent: Sent) -> Response:
    """Check the form, or start its runs: 303 to the run, or to the sweep."""
    data = {name: value for name, value in sent.items() if isinstance(value, str)}
    lists = {name: [v for v in sent.getlist(name) if isinstance(v, str)] for name in sent}
    typed = read_form(data, lists)
    other = _other_source(session, typed, data)
    if other is not None:
        return _answer(request, state, session, check(state.settings.home, other), reset=True)
    if "=" in data.get("fix", ""):
        name, _equals, text = data["fix"].partition("=")
        typed = with_query(typed, {name: text})
        return _answer(request, state, session, check(state.settings.home, typed), reset=True)
    if "check" in request.query_params:
        return _answer(request, state, session, check(state.settings.home, typed))
    return _start(request, state, session, check(state.settings.home, typed))


def _begin(session: Session, query: Mapping[str, str]) -> Typed:
    """Where the form begins. Raises ``NotFound`` for ``?from=`` of a run that is not there."""
    if query.get("from"):
        run = queries.get_run(session, query["from"])
        typed = from_run(run.config, run_id=run.id, name=run.name, tags=run.tags)
    else:
        name = query.get("preset", "")
        typed = from_preset(PRESETS.get(name) or next(iter(PRESETS.values())))
    return with_query(typed, query)


def _source(typed: Typed) -> str:
    """What the values of the form came from, as the hidden field ``loaded`` keeps it."""
    return f"run:{typed.origin}" if typed.preset == FROM_RUN else f"preset:{typed.preset or ''}"


def _other_source(session: Session, typed: Typed, data: Mapping[str, str]) -> Typed | None:
    """A new beginning where another preset or another earlier run was chosen; else None."""
    if typed.preset == FROM_RUN:
        chosen = data.get("from_run", "")
        return _begin(session, {"from": chosen}) if chosen and chosen != typed.origin else None
    if typed.preset and f"preset:{typed.preset}" != data.get("loaded", ""):
        return _begin(session, {"preset": typed.preset})
    return None


def _answer(
    request: Request,
    state: Runoff,
    session: Session,
    form: CheckedForm,
    *,
    reset: bool = False,
    refused: bool = False,
) -> Response:
    page = _page(state, session, form, refused=refused)
    response = templating.render(
        request,
        "new.html",
        page,
        status_code=422 if refused else 200,
        version=queries.data_version(session),
        refresh="header",
        header=header_from(state, queries.status_counts(session)),
    )
    if reset:  # what was ticked before must not survive in the browser
        response.headers["HX-Reswap"] = "outerHTML"
        response.headers["HX-Replace-Url"] = _address(form.typed)
    return response


def _address(typed: Typed) -> str:
    if typed.preset == FROM_RUN and typed.origin:
        return f"/runs/new?from={typed.origin}"
    return f"/runs/new?preset={typed.preset}" if typed.preset in PRESETS else "/runs/new"


def _start(request: Request, state: Runoff, session: Session, form: CheckedForm) -> Response:
    if form.problems or form.plan is None or not _is_confirmed(form):
        return _answer(request, state, session, form, refused=True)
    started = commands.start(state, form.plan)
    address = f"/sweeps/{started.sweep}" if started.sweep else f"/runs/{started.runs[0].id}"
    return RedirectResponse(address, status_code=303)


def _is_confirmed(form: CheckedForm) -> bool:
    """Whether few runs would start, or the box names their number."""
    return form.num_runs <= MOST_UNCONFIRMED or form.typed.confirmed == str(form.num_runs)


# The page ------------------------------------------------------------------------------------------------------------


def _page(state: Runoff, session: Session, form: CheckedForm, *, refused: bool) -> NewPage:
    typed = form.typed
    # The trainer host is asked before the database is read: no read transaction may wait for another process.
    datasets = catalogue.list_datasets(state.settings.home)
    dataset = next((d for d in datasets if d.name == typed.values["dataset"].partition(",")[0].strip()), None)
    configs = [run.config for run in form.plan.runs] if form.plan else []
    shown = controls(typed, form.problems, devices=_devices(state.executor))
    net = net_of(state.executor, configs[0] if configs else None, dataset)
    return NewPage(
        typed=typed,
        loaded=_source(typed),
        controls=shown,
        presets=list(PRESETS.values()),
        earlier=_earlier(session, typed),
        datasets=datasets,
        dataset=dataset,
        net=net,
        schedule=schedule_of(configs, dataset),
        seeds=seeds_sentence(typed),
        summary=_summary(state, session, form, refused=refused),
    )


def _devices(executor: TrainerHost) -> dict[str, str]:
    """Name and title of the devices of this machine; empty while the trainer host is not there to name them."""
    try:
        devices = (executor.known_devices() or executor.devices()) if executor.ready() else []
    except ExecutorUnavailable:
        return {}
    return {str(device["name"]): str(device["title"]) for device in devices}


def _earlier(session: Session, typed: Typed) -> list[Run]:
    """Runs to copy, newest first; read only where "Like an earlier run" is chosen."""
    if typed.preset != FROM_RUN:
        return []
    newest = queries.find_runs(session, queries.RunFilter(limit=100))[0]
    if typed.origin and all(run.id != typed.origin for run in newest):
        origin = session.get(Run, typed.origin)
        return [origin, *newest] if origin else newest
    return newest


# The summary ---------------------------------------------------------------------------------------------------------


def _summary(state: Runoff, session: Session, form: CheckedForm, *, refused: bool) -> Summary:
    needs_tick = form.num_runs > MOST_UNCONFIRMED
    errors = [_error(problem) for problem in form.problems]
    if refused and not errors and not _is_confirmed(form):
        message = _("Tick the box to confirm that you want to start {n} runs.").format(n=f"{form.num_runs:,}")
        errors = [FormError(_("Many runs"), message, "confirmed")]
    counts = queries.status_counts(session)
    configs = [run.config for run in form.plan.runs] if form.plan else []
    return Summary(
        count=form.num_runs,
        sentence=sentence(form.sweep) if form.sweep else "",
        estimate=estimate(session, state.settings.home, configs),
        num_ahead=counts["queued"] + counts["running"],
        errors=errors,
        warnings=_warnings(form),
        needs_tick=needs_tick,
        ticked=needs_tick and _is_confirmed(form),
        same_as=same_as(form.sweep, form.typed.preset) if form.sweep and not form.problems else None,
    )


def _error(problem: FieldProblem) -> FormError:
    name = form_field(problem.field)
    extra = {"repeats": _("Seeds for each configuration"), "name": _("Name"), "tags": _("Tags")}
    if name in FIELDS:
        return FormError(_(FIELDS[name].title or name), problem.message, name)
    return FormError(extra.get(name, _("Form")), problem.message, name if name in extra else "")


def _warnings(form: CheckedForm) -> list[FormWarning]:
    warnings = [FormWarning(_("Check this"), text) for text in form.plan.warnings] if form.plan else []
    candidates = choosing_by_test(form.sweep) if form.sweep else 0
    if candidates > 1:
        text = _(
            "Choosing by test accuracy makes the winner's number too high. "
            "Hold out validation images and use them to choose."
        )
        warnings.append(
            FormWarning(
                _("The best of {n} will look too good").format(n=candidates),
                text,
                fix="validation_fraction=0.1",
                fix_words=_("Hold out {percent} %").format(percent=10),
            )
        )
    return warnings
