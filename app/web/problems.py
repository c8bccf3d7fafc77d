"""Error responses: turns exceptions into problems, and sends them as JSON or as a page."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import DatabaseError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.errors import Conflict, InsufficientStorage, NotFound, Problem, Refused, Unavailable
from app.logs import log_failure
from app.store.database import is_damage, is_locked
from app.store.predictions import PredictionsError, PredictionsMissing
from app.web import templating
from app.web.frame import Header
from trainer.config import field_problems
from trainer.files import is_full
from trainer.i18n import _

logger = logging.getLogger(__name__)
_RETRY_SECONDS = "2"
# All other exceptions reach app.web.security.Guard, which adds its headers to the response.
HANDLED: tuple[type[Exception], ...] = (
    Problem,
    RequestValidationError,
    HTTPException,
    PredictionsError,
    DatabaseError,
    OSError,
)


@dataclass(frozen=True)
class ErrorPage:
    """Variables of error.html: what happened, and a link to continue from."""

    status: int
    title: str
    detail: str
    action_href: str
    action: str


def handle_problems(app: FastAPI) -> None:
    """Register handlers for the exceptions that routes raise."""

    async def handle(request: Request, error: Exception) -> Response:
        if is_damage(error):
            app.state.runoff.indexer.suspect()
            app.state.runoff.scheduler.wake()
        problem = as_problem(error)
        if problem.status == 503 and (missing := await run_in_threadpool(app.state.runoff.presence.problem)):
            problem = Unavailable(missing)
        return answer_problem(request.scope, problem)

    for kind in HANDLED:
        app.add_exception_handler(kind, handle)


def as_problem(error: Exception) -> Problem:
    """The problem that an exception of a route means to the user. An unexpected one is logged with its traceback."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return Refused.fields(field_problems(error.errors()))
        case HTTPException(status_code=404):
            return NotFound(_("There is nothing at this address."))
        case HTTPException(__cause__=OSError() as cause):  # raised while the body was read
            if is_full(cause):
                return InsufficientStorage(
                    _("The disk is full, so nothing was kept. Free some space, then send it again.")
                )
            return as_problem(cause)
        case HTTPException():
            return Problem(str(error.detail), status=error.status_code)
        case PredictionsMissing():
            return NotFound(str(error))
        case PredictionsError():
            return Conflict(str(error))
        case DatabaseError() if is_damage(error):
            message = _("The index is damaged or was removed. It is being made again from the run folders.")
            return Problem(f"{message} {_('Try again in a few seconds.')}", status=503)
        case DatabaseError() if is_locked(error):
            logger.warning("Another program has locked the index: %s", error.orig)
            return Problem(_("Another program has locked the index. Try again in a few seconds."), status=503)
        case DatabaseError() | OSError():
            log_failure(logger, "Storage failed.", error)
            message = _(
                "The disk or the database could not be used: {reason}. Free some space or check the server's log."
            )
            return Problem(message.format(reason=getattr(error, "orig", None) or error), status=503)
    logger.exception("A route failed.", exc_info=error)
    return Problem(_("Something went wrong in Runoff. The server's log has the details; please report it."), status=500)


def answer_problem(scope: Scope, problem: Problem) -> Response:
    """The problem as JSON for programs and as a page for browsers."""
    if _wants_json(scope):
        body = json.dumps(problem.body())  # ASCII: the sentence may repeat input that UTF-8 can't encode
        answer = Response(body, problem.status, media_type="application/problem+json")
    else:
        answer = render_error(Request(scope), problem.status, problem.title, problem.detail)
    if problem.status == 503:
        answer.headers["retry-after"] = _RETRY_SECONDS
    return answer


def _wants_json(scope: Scope) -> bool:
    return scope["path"].startswith("/api/") or "text/html" not in Headers(scope=scope).get("accept", "")


def render_error(request: Request, status: int, title: str, detail: str) -> Response:
    """An error as a page, or as a toast where an action on a page asked. Needs no database."""
    if _wants_toast(request):
        return templating.toast("alert", detail, status_code=status)
    page = ErrorPage(status, title, detail, *_next_step(request, status))
    return templating.render(request, "error.html", page, status_code=status, header=Header())


def _wants_toast(request: Request) -> bool:
    """Whether htmx shows the response as a toast on the current page instead of a new page."""
    return request.headers.get("HX-Target") == "div#toasts"


def _next_step(request: Request, status: int) -> tuple[str, str]:
    """Address and text of the link on an error page."""
    path = request.url.path
    if status == 401:
        return "/login", _("Sign in")
    if status in (500, 503, 507):
        return path, _("Try again")
    for start, href, action in (
        ("/datasets", "/datasets", _("Go to the data sets")),
        ("/compare", "/runs", _("Choose runs to compare")),
    ):
        if path.startswith(start) and path != href:
            return href, action
    return "/runs", _("Go to the runs")
