"""Sweeps: several runs from one request."""

from __future__ import annotations

import contextlib

from fastapi import APIRouter, Response
from sqlmodel import Session, col, select

from app import runs
from app.deps import Reading, State
from app.errors import Conflict, NotFound
from app.queries import run_out
from app.schemas import SweepIn, SweepOut
from app.tables import ACTIVE, Run
from trainer.i18n import _

router = APIRouter(prefix="/sweeps", tags=["sweeps"])


@router.post("", status_code=201)
def start_sweep(state: State, response: Response, sweep: SweepIn) -> SweepOut:
    """Start all runs of a grid times the repeats, or none of them."""
    started = runs.start_sweep(state, sweep)
    response.headers["location"] = f"/api/v1/sweeps/{started.id}"
    return started


def _runs_of(session: Session, sweep_id: str) -> list[Run]:
    order = (col(Run.created_at), col(Run.id))
    found = list(session.exec(select(Run).where(Run.sweep == sweep_id).order_by(*order)).all())
    if not found:
        raise NotFound(_("There is no sweep {id}. Its runs may have been deleted.").format(id=sweep_id[:40]))
    return found


@router.get("/{sweep_id}")
def get_sweep(session: Reading, sweep_id: str) -> SweepOut:
    """The runs of a sweep, as far as they exist."""
    return SweepOut(id=sweep_id, runs=[run_out(run) for run in _runs_of(session, sweep_id)])


@router.post("/{sweep_id}/cancel", status_code=202)
def cancel_sweep(state: State, session: Reading, sweep_id: str) -> SweepOut:
    """Cancel every run of the sweep that is queued or running."""
    found = _runs_of(session, sweep_id)
    for run in sorted(
        found, key=lambda run: run.status != "queued"
    ):  # queued ones first, so that none starts meanwhile
        if run.status in ACTIVE:
            with contextlib.suppress(Conflict):  # it has ended since
                runs.cancel(state, run.id)
    session.expire_all()
    return SweepOut(id=sweep_id, runs=[run_out(run) for run in _runs_of(session, sweep_id)])
