"""Which runs of a sweep are best, and how far that can be trusted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from app.runs.rows import GroupRow, Interval, Row, RunRow, measured_of
from app.statistics import best_of_n_optimism, wilson_interval
from app.store import predictions, queries
from app.store.predictions import PredictionsError
from app.store.tables import Run
from app.words import number
from trainer.i18n import _
from trainer.run_folder import RunFolder

_MOST_COMPARED = 5  # groups that the compare page opens with
_LEAST_OPTIMISM = 0.00005  # below this it is shown as 0.00 points


@dataclass(frozen=True)
class Best:
    """The run with the highest accuracy, and what to think of it."""

    run: Run
    interval: Interval
    num_candidates: int
    by_validation: bool  # chosen by validation accuracy, so its test accuracy had no part in the choice
    optimism: float | None  # mean drop from the half it was chosen on to the other; None where predictions are missing

    @property
    def was_chosen(self) -> bool:
        """Whether it is the best of several on the test images themselves, so that part of its lead is luck."""
        return self.num_candidates > 1 and not self.by_validation

    @property
    def optimism_words(self) -> str:
        """How much of its lead is luck."""
        n = number(self.num_candidates)
        if self.optimism is None:
            return _(
                "It is the best of {n} on the test images themselves, so part of its lead is luck. How much is unknown: "
                "the stored predictions of some runs are missing."
            ).format(n=n)
        if self.optimism > _LEAST_OPTIMISM:
            return _(
                "It is the best of {n} on the test images themselves, so part of its lead is luck: on images that did "
                "not take part in the choice, such a winner's accuracy was {points} points lower."
            ).format(n=n, points=f"{100 * self.optimism:.2f}")
        return _(
            "It is the best of {n} on the test images themselves. Here the choice has hardly helped it: on images that "
            "did not take part, such a winner did as well."
        ).format(n=n)


# Rows ----------------------------------------------------------------------------------------------------------------


def intervals_of(runs: Sequence[Run]) -> dict[str, Interval]:
    """The 95 % interval of the test accuracy of each run that has one, by id."""
    known = [run for run in runs if run.test_total]
    low, high = wilson_interval([run.test_correct or 0 for run in known], [run.test_total or 0 for run in known])
    return {run.id: (a, b) for run, a, b in zip(known, low.tolist(), high.tolist(), strict=True)}


def rows_of(runs: Sequence[Run], intervals: Mapping[str, Interval], *, fold: bool) -> list[Row]:
    """One row per group where ``fold`` is true, else one per run. A group with a single run is the row of that run."""
    groups: dict[str, list[RunRow]] = {}
    for run in runs:
        progress = queries.progress_of(run) if run.status == "running" else None
        row = RunRow(run, intervals.get(run.id), [], progress, None, "")
        groups.setdefault(run.group if fold else run.id, []).append(row)
    return [
        members[0]
        if len(members) == 1
        else GroupRow(members[0].run.group, sorted(members, key=lambda row: row.run.seed), is_open=False)
        for members in groups.values()
    ]


# The best run --------------------------------------------------------------------------------------------------------


def rank(runs: Sequence[Run]) -> list[Run]:
    """The finished runs that were tested on the same images (those of most runs), best first."""
    finished = [run for run in runs if run.status == "finished" and run.test_accuracy is not None and run.test_total]
    if not finished:
        return []
    [(images, _count)] = Counter(run.test_fingerprint for run in finished).most_common(1)
    same = [run for run in finished if run.test_fingerprint == images]
    return sorted(same, key=lambda run: -_score(run, _have_validation(same)))


def _have_validation(runs: Sequence[Run]) -> bool:
    return all(run.validation_accuracy is not None for run in runs)


def _score(run: Run, by_validation: bool) -> float:
    """What a run is chosen by: validation accuracy where all have one."""
    return (run.validation_accuracy if by_validation else run.test_accuracy) or 0.0


def best_of(runs_folder: Path, ranked: Sequence[Run], intervals: Mapping[str, Interval]) -> Best | None:
    """The first of the ranked runs; None where there is none."""
    if not ranked:
        return None
    by_validation = _have_validation(ranked)
    optimism = None
    if len(ranked) > 1 and not by_validation:
        with contextlib.suppress(PredictionsError):
            optimism = _optimism(runs_folder, tuple((run.id, run.epochs_done) for run in ranked))
    return Best(ranked[0], intervals[ranked[0].id], len(ranked), by_validation, optimism)


@lru_cache(maxsize=32)
def _optimism(runs_folder: Path, runs: tuple[tuple[str, int], ...]) -> float | None:
    """The bias of choosing the best of the runs (id, epoch) by their test images; None where it can't be computed.

    Raises ``PredictionsError``, which is not remembered: a missing file may come back.
    """
    correct = [predictions.load(RunFolder(runs_folder / run_id), epoch).correct for run_id, epoch in runs]
    if len({len(each) for each in correct}) > 1 or len(correct[0]) < 2:
        return None
    return best_of_n_optimism(np.stack(correct))


# The best recipes ----------------------------------------------------------------------------------------------------


def best_group(ranked: Sequence[Run], intervals: Mapping[str, Interval]) -> GroupRow | None:
    """The best by the mean over seeds among those with two or more; None where there is no other to compare with."""
    rows = _best_groups_first(ranked, intervals)
    groups = [row for row in rows if isinstance(row, GroupRow) and len(row.accuracies) > 1]
    return groups[0] if len(groups) > 1 else None


def worth_comparing(ranked: Sequence[Run]) -> list[str]:
    """One run of each of the best groups, of one seed where all have it: the compare page adds the repeats."""
    rows = _best_groups_first(ranked, {})[:_MOST_COMPARED]
    members = [measured_of(row) for row in rows]
    if len(members) < 2:
        return [run.id for run in ranked[:_MOST_COMPARED]]
    shared = set.intersection(*({one.run.seed for one in runs} for runs in members))
    return [next((one for one in runs if one.run.seed in shared), runs[0]).run.id for runs in members]


def _best_groups_first(ranked: Sequence[Run], intervals: Mapping[str, Interval]) -> list[Row]:
    """The ranked runs by group, the best group by its mean first (by validation where all have it)."""
    by_validation = _have_validation(ranked)

    def mean(row: Row) -> float:
        scores = [_score(one.run, by_validation) for one in measured_of(row)]
        return sum(scores) / len(scores)

    return sorted(rows_of(ranked, intervals, fold=True), key=mean, reverse=True)
