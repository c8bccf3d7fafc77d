"""The application: its parts put together, its life from start to end, and how errors become answers."""

from __future__ import annotations

import fcntl
import gc
import json
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import IO, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.datasets import Imports
from app.errors import RESPONSES, Conflict, NotFound, Problem, Refused
from app.routes import system
from app.routes.api import choices, compare, datasets, difficulty, runs, sweeps
from app.routes.pages import api_reference, images, new, patterns
from app.routes.pages import compare as compare_page
from app.routes.pages import datasets as datasets_page
from app.routes.pages import difficulty as difficulty_page
from app.routes.pages import run as run_page
from app.routes.pages import runs as runs_page
from app.routes.pages import sweep as sweep_page
from app.runs.executors.local import LocalExecutor
from app.runs.precision import Measuring
from app.runs.scheduler import Scheduler
from app.settings import Settings, load_settings
from app.state import Runoff
from app.store.database import make_engine, migrate
from app.store.indexer import Indexer
from app.store.predictions import PredictionsError, PredictionsMissing
from app.web import templating
from app.web.security import Guard
from trainer.config import field_problems
from trainer.i18n import _
from trainer.run_folder import write_json

logger = logging.getLogger(__name__)


class AlreadyRunning(RuntimeError):
    """Another server uses this HOME."""


def lock_home(settings: Settings) -> IO[bytes]:
    """Take HOME for this server. Raises ``AlreadyRunning``; the lock is free when the returned file is closed."""
    settings.home.mkdir(parents=True, exist_ok=True)
    file = (settings.home / "server.lock").open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        message = _("A Runoff server is running on {home} already. Use it, or set RUNOFF_HOME to another folder.")
        raise AlreadyRunning(message.format(home=settings.home)) from None
    return file


def make_state(settings: Settings) -> Runoff:
    """The parts of a server on ``settings.home``, with the database migrated; nothing runs yet."""
    engine = make_engine(settings.database)
    migrate(engine)
    indexer = Indexer(engine, settings.runs)
    executor = LocalExecutor(settings.home)
    measuring = Measuring(engine, settings.home, executor) if settings.measure else None
    return Runoff(
        settings=settings, engine=engine, executor=executor, indexer=indexer, imports=Imports(settings.home),
        scheduler=Scheduler(engine, settings.runs, indexer, executor, settings.slots, measuring),
    )  # fmt: skip


def create_app(settings: Settings | None = None, *, train: bool = True) -> FastAPI:
    """The server. With ``train`` false nothing is scheduled and no host is started, for tests of pages and API."""
    settings = settings or load_settings()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        lock = lock_home(settings)
        _clean(settings)
        state = app.state.runoff = make_state(settings)
        write_json(settings.home / "server.json", {"url": f"http://{_url_host(settings.host)}:{settings.port}"})
        if train:
            state.executor.ensure_host()
            state.scheduler.begin()
            settle_memory()
        try:
            yield
        finally:
            state.scheduler.end()
            state.imports.end()
            state.executor.close()
            state.engine.dispose()
            (settings.home / "server.json").unlink(missing_ok=True)
            lock.close()

    app = FastAPI(
        title="Runoff", version=version("runoff"), lifespan=life, docs_url=None, redoc_url=None,
        description="Launch image-classification runs, watch them live, and settle which one is really better.",
    )  # fmt: skip
    _add_routes(app)
    _add_error_handlers(app)
    app.add_middleware(Guard, settings=settings)
    return app


def settle_memory() -> None:
    """Take what is there at the start out of garbage collection: looking through all of it holds up a page for 0.1 s."""
    gc.collect()
    gc.freeze()


def _clean(settings: Settings) -> None:
    """Remove what a server that was killed left half-way: uploads, and runs on their way out."""
    settings.runs.mkdir(parents=True, exist_ok=True)
    for path in [settings.home / "uploads", *settings.runs.glob(".deleted-*")]:
        shutil.rmtree(path, ignore_errors=True)
    (settings.home / "uploads").mkdir(exist_ok=True)


def _url_host(host: str) -> str:
    """The address by which this machine reaches the server."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _add_routes(app: FastAPI) -> None:
    rest = APIRouter(prefix="/api/v1", responses=RESPONSES)
    for part in (runs, sweeps, compare, difficulty, datasets, choices):
        rest.include_router(part.router)
    app.include_router(rest)
    app.include_router(system.router)
    # "new" before "run", so that /runs/new is not taken for a run
    pages = (
        runs_page, new, run_page, sweep_page, compare_page, difficulty_page, datasets_page, images, patterns, api_reference,
    )  # fmt: skip
    for page in pages:
        app.include_router(page.router, include_in_schema=False)
    app.mount("/static", templating.Assets(), name="static")


# Errors --------------------------------------------------------------------------------------------------------------


def answer_problem(scope: Scope, problem: Problem) -> Response:
    """The problem as JSON for programs, as a page for browsers."""
    request = Request(scope)
    if scope["path"].startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
        body = json.dumps(problem.body())  # in ASCII: a sentence may repeat what no encoder takes
        return Response(body, problem.status, media_type="application/problem+json")
    return templating.render_error(request, problem.status, problem.title, problem.detail)


def as_problem(error: Exception) -> Problem:
    """Any exception of a route as a problem with a sentence."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return Refused.fields(field_problems(error.errors()))
        case HTTPException(status_code=404):
            return NotFound(_("There is nothing at this address."))
        case HTTPException():
            return Problem(str(error.detail), status=error.status_code)
        case PredictionsMissing():
            return NotFound(str(error))
        case PredictionsError():
            return Conflict(str(error))
        case OperationalError() | OSError():
            logger.exception("Storage failed.")
            message = _("The disk or the database could not be used: {reason}. Make room or look at the server's log.")
            return Problem(message.format(reason=getattr(error, "orig", None) or error), status=503)
    logger.exception("A route failed.", exc_info=error)
    return Problem(_("Something in Runoff broke. The server's log says what; please report it."), status=500)


def _add_error_handlers(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        return answer_problem(request.scope, as_problem(error))

    kinds: list[Any] = [
        Problem,
        RequestValidationError,
        HTTPException,
        PredictionsError,
        OperationalError,
        OSError,
    ]  # fmt: skip  (all others: app.web.security.Guard, whose headers they need too)
    for kind in kinds:
        app.add_exception_handler(kind, handle)
