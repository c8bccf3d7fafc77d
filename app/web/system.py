"""What is neither page nor API: the health check and signing in with the token."""

from __future__ import annotations

import hmac
import shutil
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel

from app.schemas import IndexProgress
from app.web import templating
from app.web.deps import State
from app.web.frame import Header, problems_of
from app.web.security import COOKIE
from trainer.i18n import _

router = APIRouter()
_YEAR_SECONDS = 365 * 24 * 3600


class SystemOut(BaseModel):
    """``status`` is ok or degraded; ``problems`` are sentences. Sizes are in bytes.

    ``indexing`` is the progress while many run folders are read into the index, and null otherwise.
    """

    status: str
    problems: list[str]
    disk_free: int
    disk_reserve: int
    indexing: IndexProgress | None


@router.get("/healthz", tags=["system"])
def healthz(state: State) -> dict[str, str]:
    """Health check: ``ok``, or ``degraded`` if runs can't start. Needs no token and gives no details."""
    return {"status": "degraded" if problems_of(state) else "ok"}


@router.get("/api/v1/system", tags=["system"])
def system(state: State) -> SystemOut:
    """The state of the server: why runs can't start, free space, and the progress of an index that is being made."""
    problems = problems_of(state)
    try:
        free = shutil.disk_usage(state.settings.home).free
    except OSError:
        free = 0
    return SystemOut(
        status="degraded" if problems else "ok",
        problems=problems,
        disk_free=free,
        disk_reserve=state.settings.reserve,
        indexing=state.indexer.progress,
    )


@router.post("/api/v1/reindex", tags=["system"])
def reindex(state: State) -> dict[str, int]:
    """Rebuild the database from the run folders; returns the number of runs. ``GET /api/v1/system`` shows the progress."""
    return {"runs": state.indexer.rebuild()}


@dataclass(frozen=True)
class LoginPage:
    """Variables of login.html."""

    error: str = ""


def _login_page(request: Request, error: str = "") -> Response:
    return templating.render(
        request, "login.html", LoginPage(error), status_code=401 if error else 200, header=Header()
    )


@router.get("/login", include_in_schema=False)
def show_login(request: Request) -> Response:
    """The page that asks for the token."""
    return _login_page(request)


@router.post("/login", include_in_schema=False)
def login(request: Request, state: State, token: Annotated[str, Form()] = "") -> Response:
    """Keep the token in a cookie that scripts can't read."""
    required = state.settings.required_token()
    if required and not hmac.compare_digest(token.strip().encode(), required.encode()):
        error = _("The token is wrong. The command runoff token prints it on the server's machine.")
        return _login_page(request, error)
    answer = RedirectResponse("/runs", status_code=303)
    if required:
        answer.set_cookie(COOKIE, required, max_age=_YEAR_SECONDS, httponly=True, samesite="strict")
    return answer
