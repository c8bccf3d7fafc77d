"""Comparing runs: which is better, by how much, and is it real."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import queries
from app.comparison import Comparison
from app.deps import Reading, State
from app.schemas import EpochOut, RunOut
from app.verdicts import DEFAULT_MARGIN

router = APIRouter(tags=["compare"])


class CompareOut(Comparison):
    """The comparison with the runs compared and their epochs (``curves``: run id -> epochs)."""

    runs: list[RunOut]
    curves: dict[str, list[EpochOut]]


@router.get("/compare")
def compare_runs(
    state: State,
    session: Reading,
    run: Annotated[
        list[str], Query(min_length=1, max_length=queries.MAX_COMPARED, description="run id, several times")
    ],
    at: Annotated[str, Query(description="last, best or an epoch")] = "last",
    base: Annotated[str | None, Query(description="compare all others with this run only")] = None,
    margin: Annotated[
        float, Query(gt=0, le=0.5, description="a difference too small to matter, as a fraction")
    ] = DEFAULT_MARGIN,
) -> CompareOut:
    """Compare runs; a pair's difference is the accuracy of ``a`` minus that of ``b``."""
    comparison = queries.load_comparison(state, session, run, at, base, margin)
    shown = queries.runs_to_compare(session, run)
    return CompareOut(
        **comparison.model_dump(),
        runs=[queries.run_out(one) for one in shown],
        curves={one.id: [EpochOut.model_validate(e) for e in queries.epochs_of(session, one.id)] for one in shown},
    )
