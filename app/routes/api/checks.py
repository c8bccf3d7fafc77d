"""Checks of the home, and repairs of damaged runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import BaseModel

from app.errors import NotFound
from app.runs.checking import Check
from app.schemas import RunOut
from app.store import queries
from app.store.database import reading
from app.store.queries import run_out
from app.web.deps import State
from trainer.i18n import _

router = APIRouter(tags=["system"])


class DamagedThing(BaseModel):
    """A run folder (``name`` is its id), a data set or the index, with its damage and what can be restored."""

    name: str
    problems: list[str]
    remedies: list[str]  # of a run: what a repair can restore
    advice: str


class CheckOut(BaseModel):
    """A check of run folders, data sets and the index. ``seconds`` is null while it is running."""

    full: bool
    started_at: str
    done: int  # runs
    total: int
    num_checked: int  # things of all kinds
    damaged: list[DamagedThing]
    seconds: float | None
    failed: str


class RestoredRun(BaseModel):
    """What was restored, and what is still damaged."""

    run: RunOut
    done: list[str]
    problems: list[str]


@router.post("/checks", status_code=202)
def start_check(
    state: State,
    full: Annotated[bool, Body(embed=True, description="read every file and compare it with its hash")] = False,
) -> CheckOut:
    """Check every run folder, data set and the index against checksums and each other, in the background."""
    return _out(state.checks.start(full=full))


@router.get("/checks/latest")
def latest_check(state: State) -> CheckOut:
    """The check that is running, else the last one since the server started."""
    check = state.checks.latest()
    if check is None:
        raise NotFound(_("Nothing was checked since the server started. Start a check first."))
    return _out(check)


@router.post("/runs/{run_id}/repair")
def repair_run(state: State, run_id: str) -> RestoredRun:
    """Restore damaged files of a run from the index, its log or another run; nothing is trained."""
    result = state.checks.restore(run_id)
    with reading(state.engine) as session:
        run = run_out(queries.get_run(session, run_id))
    return RestoredRun(run=run, done=result.done, problems=result.problems)


def _out(check: Check) -> CheckOut:
    damaged = [DamagedThing(**vars(checked)) for checked in check.damaged]
    return CheckOut(**{**vars(check), "damaged": damaged})
