"""Comparing runs: which is better, by how much, and is it real."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app import cost, queries
from app.comparison import Comparison
from app.deps import Reading, State
from app.schemas import AccuracyCost, EpochOut, RunOut
from app.verdicts import DEFAULT_MARGIN

router = APIRouter(tags=["compare"])


class CompareOut(Comparison):
    """The comparison with the runs compared, their epochs (``curves``: run id -> epochs) and what an accuracy cost each."""

    runs: list[RunOut]
    curves: dict[str, list[EpochOut]]
    to_accuracy: list[AccuracyCost]  # in the order of the runs


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
    accuracy: Annotated[
        float | None, Query(gt=0, le=1, description="for to_accuracy; else the last whole per cent that all reached")
    ] = None,
) -> CompareOut:
    """Compare runs; a pair's difference is the accuracy of ``a`` minus that of ``b``."""
    comparison = queries.load_comparison(state, session, run, at, base, margin)
    shown = queries.runs_to_compare(session, run)
    curves = {one.id: queries.epochs_out(session, one) for one in shown}
    target = accuracy or cost.highest_of_all(list(curves.values()))
    return CompareOut(
        **comparison.model_dump(),
        runs=[queries.run_out(one) for one in shown],
        curves=curves,
        to_accuracy=[cost.to_accuracy(epochs, target) for epochs in curves.values()] if target else [],
    )
