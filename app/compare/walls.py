"""The answers of two runs side by side: the images that separate them, their confusion matrices, their classes.

Pure over answers; what a difference means is ``app.compare.comparison``'s. ``places`` are the runs' numbers on a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app import statistics
from app.compare.verdicts import ALPHA
from app.draw import charts
from app.store.predictions import Predictions, confusion_matrix

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
    """Indices of the test images of one tab, worst first: the surest wrong answer, at last the least sure right ones.

    ``side`` is one of ``SIDES``: only a right, only b right, both wrong, both right, all. ``predicted`` keeps the images
    that either run took for that class.
    """
    masks = {
        "a": a.correct & ~b.correct, "b": b.correct & ~a.correct, "wrong": ~a.correct & ~b.correct,
        "right": a.correct & b.correct, "all": np.ones(a.num_images, dtype=np.bool_),
    }  # fmt: skip
    mask = masks[side]
    if label is not None:
        mask &= a.labels == label
    if predicted is not None:
        mask &= (a.predicted == predicted) | (b.predicted == predicted)
    wrong = np.maximum(np.where(a.correct, -1, a.confidence), np.where(b.correct, -1, b.confidence))
    worst = np.where(wrong >= 0, 2 + wrong, -np.minimum(a.confidence, b.confidence))
    chosen = np.flatnonzero(mask)
    return chosen[np.argsort(-worst[chosen], kind="stable")]


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


def num_classes(class_names: Sequence[str], *answers: Predictions) -> int:
    """As many as the data set names, and no fewer than the answers need."""
    return max(len(class_names), *(int(x.max()) + 1 for p in answers for x in (p.labels, p.predicted) if p.num_images))


# Confusion matrices --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DifferenceCell:
    """A count of a minus that of b, whom it favours (number on the page), and its heat 0..5."""

    difference: int
    favours: int
    heat: int


def matrix_difference(
    a: Predictions, b: Predictions, places: tuple[int, int], size: int, heat_of: Callable[[int, int], int]
) -> list[list[DifferenceCell]]:
    """The difference of two confusion matrices; rows are true classes."""
    mine, other = confusion_matrix(a, size), confusion_matrix(b, size)
    difference, totals = (mine - other).tolist(), mine.sum(axis=1).tolist()

    def cell(label: int, answer: int) -> DifferenceCell:
        value = difference[label][answer]
        is_better = value > 0 if label == answer else value < 0
        return DifferenceCell(value, places[0] if is_better else places[1], heat_of(abs(value), totals[label]))

    return [[cell(label, answer) for answer in range(size)] for label in range(size)]


# Classes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassRow:
    """One class: its images, both accuracies, and their difference with its interval (fractions), drawn."""

    label: int
    count: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    strip: charts.Drawing


@dataclass(frozen=True)
class ClassTable:
    """The classes that have images, worst for a first. Each interval has ``level``: together they hold in 95 %."""

    rows: list[ClassRow]
    level: float
    head: charts.Drawing


class ClassDifference(BaseModel):
    """One class: its images, both accuracies, and a minus b with its interval (fractions)."""

    label: int
    num_images: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: tuple[float, float]


def class_differences(a: Predictions, b: Predictions, size: int) -> tuple[list[ClassDifference], float]:
    """The classes that have images, in their order, and the level of each interval, so that all together hold in 95 %.

    ``size`` is the number of classes.
    """
    present = np.unique(a.labels).tolist()
    level = 1 - ALPHA / max(len(present), 1)
    found = statistics.class_differences(a.labels, a.correct, b.correct, size, level)

    def one(label: int) -> ClassDifference:
        accuracy_a, accuracy_b = float(found.accuracy_a[label]), float(found.accuracy_b[label])
        return ClassDifference(
            label=label, num_images=int(found.num_images[label]), accuracy_a=accuracy_a, accuracy_b=accuracy_b,
            difference=accuracy_a - accuracy_b, interval=(float(found.low[label]), float(found.high[label])),
        )  # fmt: skip

    return [one(label) for label in present], level


def class_table(a: Predictions, b: Predictions, places: tuple[int, int], size: int) -> ClassTable:
    """Where the two runs differ, class by class; ``size`` is the number of classes."""
    found, level = class_differences(a, b, size)
    strips = charts.Strips.around([(100 * one.interval[0], 100 * one.interval[1]) for one in found])

    def row(one: ClassDifference) -> ClassRow:
        low, high = one.interval
        favours = places[0] if low > 0 else places[1] if high < 0 else None
        return ClassRow(
            label=one.label, count=one.num_images, a=one.accuracy_a, b=one.accuracy_b, difference=one.difference,
            interval=one.interval, strip=strips.row(100 * one.difference, (100 * low, 100 * high), favours),
        )  # fmt: skip

    return ClassTable([row(one) for one in sorted(found, key=lambda one: one.difference)], level, strips.head())
