"""Starts runs as the API does, without a request."""

from __future__ import annotations

from typing import Any

from app.runs import commands
from app.runs.commands import Started
from app.runs.plan import plan, plan_run
from app.schemas import SweepIn
from app.state import Runoff
from app.store.tables import Run


def start_run(state: Runoff, **body: Any) -> Run:
    """One run, from the fields of a request."""
    [run] = commands.start(state, plan_run(state.settings.home, body)).runs
    return run


def start_sweep(state: Runoff, **request: Any) -> Started:
    """A sweep, from the fields of a request."""
    return commands.start(state, plan(state.settings.home, SweepIn(**request)))
