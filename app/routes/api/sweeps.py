"""Sweeps and groups: several runs from one request."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from app.routes.api.starting import IdempotencyKey, start_once
from app.runs import commands
from app.runs.commands import Started
from app.runs.plan import plan
from app.schemas import RepeatsIn, SweepIn, SweepOut
from app.store.queries import run_out, sweep_runs
from app.web.deps import Reading, State

router = APIRouter(tags=["sweeps"])


@router.post("/sweeps", status_code=201, response_model=SweepOut)
def start_sweep(state: State, response: Response, sweep: SweepIn, idempotency_key: IdempotencyKey = None) -> Any:
    """Start every combination of a grid, with repeats; all runs or none. With the header
    Idempotency-Key it can be repeated safely.
    """
    asked = ["sweeps", sweep.model_dump(exclude_unset=True)]
    return start_once(state, response, idempotency_key, asked, lambda: plan(state.settings.home, sweep))


@router.get("/sweeps/{sweep_id}")
def get_sweep(session: Reading, sweep_id: str) -> SweepOut:
    """The runs of a sweep that still exist, in the order in which they start."""
    return SweepOut(id=sweep_id, runs=[run_out(run) for run in sweep_runs(session, sweep_id)])


@router.post("/sweeps/{sweep_id}/cancel", status_code=202)
def cancel_sweep(state: State, session: Reading, sweep_id: str) -> SweepOut:
    """Cancel every run of the sweep that is queued or running."""
    commands.cancel_sweep(state, sweep_id)
    return SweepOut(id=sweep_id, runs=[run_out(run) for run in sweep_runs(session, sweep_id)])


@router.post("/groups/{group}/repeats", status_code=201)
def add_repeats(state: State, response: Response, group: str, wanted: RepeatsIn) -> SweepOut:
    """Start more repeats of a group, with the next seeds that none of its runs has used; returns the new runs."""
    return _created(response, commands.add_repeats(state, group, wanted.count))


def _created(response: Response, started: Started) -> SweepOut:
    assert started.sweep is not None
    response.headers["location"] = f"/api/v1/sweeps/{started.sweep}"
    return SweepOut(id=started.sweep, runs=[run_out(run) for run in started.runs], warnings=started.warnings)
