"""More repeats of two recipes: how many seeds each one lacks, and how long training them takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import Session, col, select

from app.compare.recipes import USEFUL_SEEDS
from app.compare.shapes import Recipe
from app.runs.sweeps import next_seeds
from app.store.tables import Run

MOST_FURTHER = 100  # seeds that can be added at once


@dataclass(frozen=True)
class MoreSeeds:
    """What "Add repeats" would start: how many runs, and about how long they take."""

    further: int
    num_runs: int
    seconds: float | None


def more_seeds(session: Session, a: Run, b: Run, recipe: Recipe | None) -> MoreSeeds | None:
    """The further seeds that the power calculation asks for; None where there are none to offer."""
    if recipe is None or recipe.verdict == "not_comparable" or recipe.further_seeds == 0:
        return None
    further = recipe.further_seeds
    if further is None:  # no number would find the margin; up to five seeds still show the spread
        further = max(USEFUL_SEEDS - min(recipe.n_a, recipe.n_b), 0)
    further = min(further, MOST_FURTHER)
    for_a, for_b = missing_seeds(counted_seeds(session, a), counted_seeds(session, b), further)
    num_runs = len(for_a) + len(for_b)
    return MoreSeeds(further, num_runs, _sum_of_seconds([(a, len(for_a)), (b, len(for_b))])) if num_runs else None


def counted_seeds(session: Session, run: Run) -> set[int]:
    """The seeds of the run's group that are finished, running or queued."""
    states = ("finished", "running", "queued")
    query = select(Run.seed).where(Run.group == run.group, col(Run.status).in_(states))
    return set(session.exec(query).all())


def missing_seeds(a: set[int], b: set[int], further: int) -> tuple[list[int], list[int]]:
    """The seeds that each side lacks so that both have the same ones, ``further`` more than the shorter side has."""
    wanted = sorted(a | b)
    size = max(min(len(a), len(b)) + further, len(wanted)) if further else len(wanted)
    wanted += next_seeds(wanted, size - len(wanted))
    return [seed for seed in wanted if seed not in a], [seed for seed in wanted if seed not in b]


def _sum_of_seconds(runs: Sequence[tuple[Run, int]]) -> float | None:
    """What so many runs like these take, from their epochs so far; None where a run has none."""
    if not all(run.epochs_done for run, _count in runs):
        return None
    return sum(
        count * (run.train_seconds + run.evaluation_seconds) / run.epochs_done * run.epochs for run, count in runs
    )
