"""Parts of the compare page: the images that separate two runs, their confusion matrices, the seeds that are missing.

Pure over answers and rows; what a difference means is ``app.comparison``'s, the page itself is ``compare``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app import charts
from app.comparison import Comparison, Group, Pair, Recipe
from app.predictions import Predictions, confusion_matrix
from trainer.i18n import _

SIDES = ("a", "b", "wrong", "right", "all")


# Images --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What one run answered; ``index`` is its number on the page."""

    index: int
    predicted: int
    right: bool
    confidence: float


@dataclass(frozen=True)
class SharedTile:
    """One test image with the answers of several runs."""

    index: int
    label: int
    answers: list[Answer]


def separating(a: Predictions, b: Predictions, side: str, label: int | None, predicted: int | None) -> NDArray[np.intp]:
    """Indices of the test images of one tab, in its order: the surest wrong answer first; ``all`` in order.

    ``side`` is one of ``SIDES``: only a right, only b right, both wrong, both right, all. ``predicted`` keeps the images
    that either run took for that class.
    """
    masks = {
        "a": a.correct & ~b.correct, "b": b.correct & ~a.correct, "wrong": ~a.correct & ~b.correct,
        "right": a.correct & b.correct, "all": np.ones(a.num_images, dtype=np.bool_),
    }  # fmt: skip
    mask = masks[side].copy()
    if label is not None:
        mask &= a.labels == label
    if predicted is not None:
        mask &= (a.predicted == predicted) | (b.predicted == predicted)
    chosen = np.flatnonzero(mask)
    if side == "all":
        return chosen
    surest = {"a": b.confidence, "b": a.confidence, "wrong": np.maximum(a.confidence, b.confidence)}
    by = surest.get(side, -np.minimum(a.confidence, b.confidence))[chosen]
    return chosen[np.argsort(-by, kind="stable")]


def shared_tiles(indices: Sequence[int], answers: Sequence[tuple[int, Predictions]]) -> list[SharedTile]:
    """The images with what each run (number on the page, answers) said."""
    return [
        SharedTile(
            index=int(i), label=int(answers[0][1].labels[i]),
            answers=[
                Answer(number, int(p.predicted[i]), bool(p.correct[i]), float(p.confidence[i])) for number, p in answers
            ],
        )
        for i in indices
    ]  # fmt: skip


# Confusion matrices --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DifferenceCell:
    """A count of a minus that of b, whom it favours (number on the page), and its heat 0..5."""

    difference: int
    favours: int
    heat: int


@dataclass(frozen=True)
class ClassRow:
    """One class: how many images, and the part that each run got right."""

    label: int
    count: int
    a: float
    b: float


@dataclass(frozen=True)
class MatrixDifference:
    """Rows are true classes; empty where there are too many classes for a table."""

    rows: list[list[DifferenceCell]]
    classes: list[ClassRow]


def matrix_difference(
    a: Predictions, b: Predictions, places: tuple[int, int], size: int, heat_of: Callable[[int, int], int], most: int
) -> MatrixDifference:
    """The difference of two confusion matrices, and the accuracy by class; ``places`` are the runs' numbers."""
    mine, other = confusion_matrix(a, size), confusion_matrix(b, size)
    difference, totals = (mine - other).tolist(), mine.sum(axis=1).tolist()
    rows = []
    for label in range(size if size <= most else 0):
        cells = []
        for answer in range(size):
            value = difference[label][answer]
            is_better = value > 0 if label == answer else value < 0
            cells.append(
                DifferenceCell(value, places[0] if is_better else places[1], heat_of(abs(value), totals[label]))
            )
        rows.append(cells)
    right_a, right_b = np.diag(mine).tolist(), np.diag(other).tolist()
    classes = [
        ClassRow(label, total, right_a[label] / total, right_b[label] / total)
        for label, total in enumerate(totals)
        if total
    ]
    return MatrixDifference(rows, classes)


# Charts --------------------------------------------------------------------------------------------------------------


def forest(
    pair: Pair, recipe: Recipe | None, details: tuple[str, str], places: tuple[int, int], comparison: Comparison
) -> charts.Pair | None:
    """The pair and, where seeds give one, the recipes, around zero with the margin; None without an interval."""
    rows = []
    if pair.interval is not None and pair.difference is not None:
        rows.append(_row(_("These two nets"), details[0], pair.difference, pair.interval, pair.verdict, places))
    if recipe is not None and recipe.interval is not None and recipe.difference is not None:
        rows.append(_row(_("The two recipes"), details[1], recipe.difference, recipe.interval, recipe.verdict, places))
    if not rows:
        return None
    return charts.forest_plot(
        rows, margin=comparison.margin * 100, left=pair.b_name, right=pair.a_name, level=comparison.level
    )


def _row(
    title: str,
    detail: str,
    difference: float,
    interval: tuple[float, float],
    verdict: str | None,
    places: tuple[int, int],
) -> charts.ForestRow:
    favours = {"a_better": places[0], "b_better": places[1]}.get(verdict or "")
    return charts.ForestRow(title, detail, difference * 100, interval[0] * 100, interval[1] * 100, favours)


_OTHER_SIDE = {"a_better": "b_better", "b_better": "a_better"}


def turned(recipe: Recipe, a: str) -> Recipe:
    """The recipe with group ``a`` as its first side."""
    if recipe.a == a:
        return recipe
    return recipe.model_copy(
        update={
            "a": recipe.b, "b": recipe.a, "a_name": recipe.b_name, "b_name": recipe.a_name, "n_a": recipe.n_b,
            "n_b": recipe.n_a, "difference": None if recipe.difference is None else -recipe.difference,
            "interval": None if recipe.interval is None else (-recipe.interval[1], -recipe.interval[0]),
            "verdict": _OTHER_SIDE.get(recipe.verdict or "", recipe.verdict),
        }
    )  # fmt: skip


def seeds_chart(groups: Sequence[tuple[int, Group]], caption: str) -> charts.Pair | None:
    """Seeds of each group (number on the page, group) that has at least two."""
    rows = [
        charts.SeedRow(
            place, group.name, [100 * value for value in group.accuracies], 100 * group.mean, 100 * group.interval[0],
            100 * group.interval[1],
        )
        for place, group in groups
        if group.mean is not None and group.interval is not None
    ]  # fmt: skip
    return charts.seeds_chart(rows, caption=caption) if rows else None


def spread_sentence(groups: Sequence[Group]) -> str:
    """How much the seeds move each recipe."""
    known = [group for group in groups if group.standard_deviation is not None]
    parts = [
        _("{points} points for {name}").format(points=f"{100 * (group.standard_deviation or 0):.1f}", name=group.name)
        for group in known
    ]
    if not parts:
        return ""
    return _("The standard deviation over seeds is {parts}.").format(parts=_(" and ").join(parts))


# More seeds ----------------------------------------------------------------------------------------------------------


def missing_seeds(a: set[int], b: set[int], further: int) -> tuple[list[int], list[int]]:
    """The seeds that each side lacks so that both have the same ones, ``further`` more than the shorter side has."""
    wanted = sorted(a | b)
    size = max(min(len(a), len(b)) + further, len(wanted)) if further else len(wanted)
    following = (max(wanted) if wanted else -1) + 1
    wanted += range(following, following + size - len(wanted))
    return [seed for seed in wanted if seed not in a], [seed for seed in wanted if seed not in b]


@dataclass(frozen=True)
class MoreSeeds:
    """What "Add repeats" would start: how many runs, and about how long they take."""

    further: int
    num_runs: int
    seconds: float | None
