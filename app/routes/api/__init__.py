"""The REST API under ``/api/v1``, one module per noun."""

from __future__ import annotations

from fastapi import APIRouter


def routers() -> list[APIRouter]:
    """All routers of the API."""
    from app.routes.api import choices, compare, datasets, runs, sweeps

    return [module.router for module in (runs, sweeps, compare, datasets, choices)]
