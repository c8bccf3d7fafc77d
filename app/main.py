"""The web application: settings, parts, routes and error handling put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import cache
from importlib.metadata import version
from typing import IO

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from app.errors import RESPONSES
from app.routes.api import checks, choices, compare, datasets, difficulty, runs, sweeps
from app.routes.pages import api_reference, images, new, patterns
from app.routes.pages import check as check_page
from app.routes.pages import compare as compare_page
from app.routes.pages import datasets as datasets_page
from app.routes.pages import difficulty as difficulty_page
from app.routes.pages import run as run_page
from app.routes.pages import runs as runs_page
from app.routes.pages import sweep as sweep_page
from app.server import serving, settle_memory
from app.settings import Settings, load_settings
from app.state import Runoff
from app.web import system, templating
from app.web.problems import handle_problems
from app.web.security import Guard

API_PARTS = (runs, sweeps, compare, difficulty, datasets, checks, choices)
PAGES = (
    runs_page,
    new,  # before run_page, so that /runs/new is not read as a run's address
    run_page,
    sweep_page,
    compare_page,
    difficulty_page,
    datasets_page,
    check_page,
    images,
    patterns,
    api_reference,
)


def create_app(
    settings: Settings | None = None,
    *,
    train: bool = True,
    state: Runoff | None = None,
    lock: IO[bytes] | None = None,
) -> FastAPI:
    """The web application. With ``train`` false nothing is scheduled and no host starts, for tests of pages and API.

    ``state`` is a server whose parts are already running; without it, they start and end with the application. ``lock`` is
    the lock on the home, if the caller holds it.
    """
    settings = settings or load_settings()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with nullcontext(state) if state else serving(settings, train=train, lock=lock) as parts:
            app.state.runoff = parts
            if train and not state:
                settle_memory()
            yield

    app = FastAPI(
        title="Runoff",
        version=version("runoff"),
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        description="Launch image-classification runs, watch them live, and settle which one is really better.",
        routes=list(_routes()),
    )
    handle_problems(app)
    app.add_middleware(Guard, settings=settings)
    return app


@cache
def _routes() -> list[BaseRoute]:
    """All addresses. They hold no state, so all applications of a process share them; building them takes 0.1 s."""
    rest = APIRouter(prefix="/api/v1", responses=RESPONSES)
    for part in API_PARTS:
        rest.include_router(part.router)
    router = APIRouter()
    router.include_router(rest)
    router.include_router(system.router)
    for page in PAGES:
        router.include_router(page.router, include_in_schema=False)
    router.mount("/static", templating.Assets(), name="static")
    return router.routes
