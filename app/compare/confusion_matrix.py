"""Confusion matrices: that of one run, and the difference of two. Rows are true classes, columns predicted ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.store.predictions import Predictions, PredictionsDamaged
from app.words import MINUS
from trainer.i18n import _

MOST_CLASSES = 40  # of a table; of more classes the most frequent mistakes are listed
_MOST_MISTAKES = 30
_HEATS = (0.003, 0.008, 0.02, 0.05)  # fractions of a class's images at which a cell gets darker


def confusion_matrix(predictions: Predictions, num_classes: int) -> NDArray[np.int64]:
    """Counts [K, K]: row = true class, column = predicted class.

    Raises ``PredictionsDamaged`` where a class is not below ``num_classes``.
    """
    labels, predicted = predictions.labels, predictions.predicted.astype(np.int64)
    if predictions.num_images and max(labels.max(), predicted.max()) >= num_classes:
        raise PredictionsDamaged(_("A prediction names a class that the data set does not have. Train the run again."))
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def heat_of(count: int, total: int) -> int:
    """How dark a cell is: 0 for no image, then 1 to 5 by its fraction of the class's images."""
    if not count or not total:
        return 0
    return 1 + sum(count / total > step for step in _HEATS)


# One run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A count with its heat 0 to 5, and the address that shows its images."""

    count: int
    heat: int
    href: str
    is_diagonal: bool
    current: bool  # whether its images are shown


@dataclass(frozen=True)
class Matrix:
    """The table, or where it would be too wide the most frequent mistakes as (true class, predicted class, cell)."""

    rows: list[list[Cell]]
    largest: list[tuple[int, int, Cell]]


def matrix_of(
    predictions: Predictions,
    num_classes: int,
    href: Callable[[int, int], str],
    shown: tuple[int | None, int | None],
) -> Matrix:
    """The confusion matrix of a run. ``href`` gives the address of a cell, ``shown`` is the cell whose images are shown."""
    counts = confusion_matrix(predictions, num_classes)
    totals = counts.sum(axis=1).tolist()

    def cell(label: int, predicted: int) -> Cell:
        count = int(counts[label, predicted])
        current = shown == (label, predicted)
        return Cell(count, heat_of(count, totals[label]), href(label, predicted), label == predicted, current)

    if num_classes <= MOST_CLASSES:
        return Matrix([[cell(i, j) for j in range(num_classes)] for i in range(num_classes)], [])
    return Matrix([], [(i, j, cell(i, j)) for i, j in _largest_mistakes(counts)])


def _largest_mistakes(counts: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The cells off the diagonal with most images, ties in reading order."""
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_MOST_MISTAKES]
    rows, columns = np.unravel_index(order, counts.shape)
    return [(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if mistakes[i, j]]


# Two runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DifferenceCell:
    """A count of a minus that of b, the number on the page of the run that it favours, and its heat 0 to 5."""

    difference: int
    favours: int
    heat: int

    @property
    def words(self) -> str:
        """The difference with its sign: ``+12``."""
        return f"{self.difference:+,}".replace("-", MINUS)


def matrix_difference(
    a: Predictions, b: Predictions, places: tuple[int, int], num_classes: int
) -> list[list[DifferenceCell]]:
    """The confusion matrix of a minus that of b; ``places`` are the numbers of the two runs on the page."""
    counts = confusion_matrix(a, num_classes)
    difference = (counts - confusion_matrix(b, num_classes)).tolist()
    totals = counts.sum(axis=1).tolist()

    def cell(label: int, predicted: int) -> DifferenceCell:
        value = difference[label][predicted]
        is_better = value > 0 if label == predicted else value < 0
        return DifferenceCell(value, places[0] if is_better else places[1], heat_of(abs(value), totals[label]))

    return [[cell(i, j) for j in range(num_classes)] for i in range(num_classes)]
