"""The pages, one module each."""

from __future__ import annotations

from fastapi import APIRouter


def routers() -> list[APIRouter]:
    """All routers of pages; ``new`` before ``run``, so that /runs/new is not taken for a run."""
    from app.routes.pages import api_reference, compare, datasets, images, new, patterns, run, runs

    return [module.router for module in (runs, new, run, compare, datasets, images, patterns, api_reference)]
