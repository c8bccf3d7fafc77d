"""The runs page: a table whose filters, order and groups are in its URL, and the actions on selected runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import ValidationError

from app.errors import Conflict, NotFound, Problem, Refused
from app.routes.pages.runs_view import RunsPage, RunsQuery
from app.runs import commands
from app.runs.columns import columns_of
from app.runs.table import MOST_AT_ONCE, load_table, matching_ids
from app.schemas import RunChange
from app.state import Runoff
from app.store import queries, search
from app.store.database import reading
from app.store.search import SearchError
from app.store.tables import Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from trainer.config import FieldProblem
from trainer.i18n import _, ngettext

router = APIRouter()
Action = Literal["archive", "unarchive", "delete", "tag", "untag", "cancel", "resume"]


@router.get("/")
def home() -> RedirectResponse:
    """Redirect the home page to the runs page."""
    return RedirectResponse("/runs", 303)


@router.get("/runs")
def runs_page(request: Request, state: State, session: Reading, query: Annotated[RunsQuery, Query()]) -> Response:
    """The table of runs."""
    version = queries.data_version(session)
    if same := templating.unchanged(request, version):
        return same
    problem = _problem(query.q)
    wanted = query.filter()
    table = load_table(
        session,
        state.settings.runs,
        replace(wanted, q=None) if problem else wanted,
        fold=not query.apart,
        open_groups=query.open,
        page=query.page,
        until=query.until,
    )
    if problem:
        table = replace(table, rows=[], num_matching=0, num_rows=0, num_newer=0)
    counts = queries.counts_by_archived(session)
    num_archived = sum(counts[True].values())
    page = RunsPage(
        query=query,
        table=table,
        columns=columns_of(query.columns),
        choices=queries.distinct_values(session),
        has_any=bool(num_archived + sum(counts[False].values())),
        num_archived=num_archived,
        problem=problem,
    )
    header = header_from(state, counts[False])
    asked_by_page = "HX-Request" in request.headers
    status_code = 422 if problem and not asked_by_page else 200
    answer = templating.render(request, "runs.html", page, version=version, header=header, status_code=status_code)
    if problem and asked_by_page:  # the rows stay as they are; only the problem is put into the page
        place = "#search-problem"
        answer.headers.update(
            {"HX-Retarget": place, "HX-Reselect": place, "HX-Reswap": "outerHTML", "HX-Push-Url": "false"}
        )
    return answer


def _problem(q: str) -> SearchError | None:
    try:
        search.condition(q)
    except SearchError as error:
        return error
    return None


@router.get("/runs/matching")
def matching(session: Reading, query: Annotated[RunsQuery, Query()]) -> JSONResponse:
    """The ids of all runs that match the URL, over all pages of the table, for an action on them."""
    ids = matching_ids(session, query.filter())
    if len(ids) > MOST_AT_ONCE:
        message = _("{n} runs match; one action takes at most {limit}. Narrow the search.")
        raise Refused(message.format(n=f"{len(ids):,}", limit=f"{MOST_AT_ONCE:,}"))
    return JSONResponse(ids)


# Actions on selected runs --------------------------------------------------------------------------------------------


@router.post("/runs/selected")
def act(
    request: Request,
    state: State,
    action: Annotated[Action, Form()],
    run: Annotated[list[str], Form()],
    tag: Annotated[str, Form()] = "",
) -> Response:
    """Apply an action to all selected runs, and respond with a toast.

    ``run`` has the ids; each text may be several ids separated by commas.
    """
    ids = list(dict.fromkeys(run_id for value in run for run_id in value.split(",") if run_id))
    if len(ids) > MOST_AT_ONCE:
        message = _("One action takes at most {limit} runs; you chose {n}.")
        raise Refused(message.format(n=f"{len(ids):,}", limit=f"{MOST_AT_ONCE:,}"))
    done, problems = [], []
    for run_id in ids:
        try:
            _ACTIONS[action](state, _find(state, run_id), tag.strip())
            done.append(run_id)
        except (Conflict, NotFound) as problem:
            problems.append(problem)
    if problems and not done:
        raise problems[0] if len(ids) == 1 else Conflict(_rest(problems))
    if "HX-Request" not in request.headers:
        return RedirectResponse("/runs", 303)
    message = _DONE[action](len(done)).format(n=len(done), tag=tag.strip())
    undo = {"archive": "unarchive", "unarchive": "archive"}.get(action)
    undo_by = ("/runs/selected", {"action": undo, "run": done}) if undo else None
    if action == "delete":
        undo_by = ("/runs/deleted", {"run": done})
    return templating.toast(_ICONS[action], f"{message} {_rest(problems)}".strip(), undo=undo_by)


@router.post("/runs/deleted")
def undelete(request: Request, state: State, run: Annotated[list[str], Form()]) -> Response:
    """Undelete runs, and respond with a toast."""
    problems: list[Problem] = []
    for run_id in run:
        try:
            commands.restore(state, run_id)
        except (Conflict, NotFound) as problem:
            problems.append(problem)
    if len(problems) == len(run):
        raise problems[0]
    if "HX-Request" not in request.headers:
        return RedirectResponse("/runs", 303)
    count = len(run) - len(problems)
    message = ngettext("{n} run undeleted", "{n} runs undeleted", count).format(n=count)
    return templating.toast("again", f"{message} {_rest(problems)}".strip())


def _find(state: Runoff, run_id: str) -> Run:
    """Read a run in its own session, which is closed before anything is written: it would block the writer."""
    with reading(state.engine) as session:
        return queries.get_run(session, run_id)


def _rest(problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    words = ngettext("{n} run unchanged: {why}", "{n} runs unchanged: {why}", len(problems))
    return words.format(n=len(problems), why=problems[0].detail)


def _change(state: Runoff, run: Run, **values: Any) -> None:
    try:
        wanted = RunChange(**values)
    except ValidationError:
        message = _("A tag has 1 to 40 characters, and a run has at most 20 tags.")
        raise Refused.fields([FieldProblem(field="tag", message=message)]) from None
    commands.change(state, run.id, wanted)


_ACTIONS: dict[str, Callable[[Runoff, Run, str], object]] = {
    "archive": lambda state, run, tag: _change(state, run, archived=True),
    "unarchive": lambda state, run, tag: _change(state, run, archived=False),
    "delete": lambda state, run, tag: commands.delete(state, run.id),
    "tag": lambda state, run, tag: _change(state, run, tags=list(dict.fromkeys([*run.tags, tag]))),
    "untag": lambda state, run, tag: _change(state, run, tags=[other for other in run.tags if other != tag]),
    "cancel": lambda state, run, tag: commands.cancel(state, run.id),
    "resume": lambda state, run, tag: commands.resume(state, run.id),
}
_ICONS = {
    "archive": "archive",
    "unarchive": "archive",
    "delete": "trash",
    "tag": "tag",
    "untag": "tag",
    "cancel": "ban",
    "resume": "play",
}
_DONE: dict[str, Callable[[int], str]] = {
    "archive": lambda n: ngettext("{n} run archived", "{n} runs archived", n),
    "unarchive": lambda n: ngettext("{n} run unarchived", "{n} runs unarchived", n),
    "delete": lambda n: ngettext("{n} run deleted", "{n} runs deleted", n),
    "tag": lambda n: ngettext("{n} run tagged {tag}", "{n} runs tagged {tag}", n),
    "untag": lambda n: ngettext("Tag {tag} removed from {n} run", "Tag {tag} removed from {n} runs", n),
    "cancel": lambda n: ngettext("{n} run is being cancelled", "{n} runs are being cancelled", n),
    "resume": lambda n: ngettext("{n} run is in the queue again", "{n} runs are in the queue again", n),
}
