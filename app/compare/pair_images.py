"""The test images of two runs side by side: who is right on which, walls of images, and the differences class by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app import statistics
from app.compare.load import LoadedComparison
from app.compare.shapes import ALPHA
from app.compare.walls import num_classes
from app.draw.compare import DifferenceStrips
from app.draw.svg import Drawing
from app.store.predictions import Predictions

# The images on which only a is right, only b, none, both; and all images. The number is that of ``outcomes``.
_OUTCOME_OF_SIDE = {"a": 2, "b": 1, "wrong": 0, "right": 3}
SIDES = (*_OUTCOME_OF_SIDE, "all")


@dataclass(frozen=True)
class Answer:
    """What one run predicted; ``index`` is its number on the page."""

    index: int
    predicted: int
    right: bool
    confidence: float


@dataclass(frozen=True)
class SharedTile:
    """One test image with the predictions of both runs."""

    index: int
    label: int
    answers: list[Answer]


@dataclass(frozen=True, eq=False)
class PairImages:
    """Two runs that were tested on the same images; ``places`` are their numbers on the page."""

    a: Predictions
    b: Predictions
    places: tuple[int, int] = (0, 1)

    @cached_property
    def outcomes(self) -> NDArray[np.int64]:
        """For each image [N] whether a (2) and b (1) are right, added up."""
        return 2 * self.a.correct.astype(np.int64) + self.b.correct

    @cached_property
    def worst_first(self) -> NDArray[np.intp]:
        """All images [N]: the most confident wrong prediction first, the least confident right ones last."""
        a, b = self.a, self.b
        wrong = np.maximum(np.where(a.correct, -1, a.confidence), np.where(b.correct, -1, b.confidence))
        worst = np.where(wrong >= 0, 2 + wrong, -np.minimum(a.confidence, b.confidence))
        return np.argsort(-worst, kind="stable")

    def selection(self, label: int | None = None, predicted: int | None = None) -> Selection:
        """The images of a class, and those that either run took for the class ``predicted``; None means any."""
        chosen = np.ones(self.a.num_images, np.bool_) if label is None else self.a.labels == label
        if predicted is not None:
            chosen = chosen & ((self.a.predicted == predicted) | (self.b.predicted == predicted))
        return Selection(self, self.worst_first[chosen[self.worst_first]])

    def tiles(self, indices: Iterable[int]) -> list[SharedTile]:
        """These images with the predictions of both runs."""
        both = list(zip(self.places, (self.a, self.b), strict=True))
        return [
            SharedTile(
                index,
                int(self.a.labels[index]),
                [
                    Answer(place, int(run.predicted[index]), bool(run.correct[index]), float(run.confidence[index]))
                    for place, run in both
                ],
            )
            for index in indices
        ]


@dataclass(frozen=True, eq=False)
class Selection:
    """Some images of a pair, worst first."""

    pair: PairImages
    indices: NDArray[np.intp]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many of the images each of ``SIDES`` has."""
        counts = np.bincount(self.pair.outcomes[self.indices], minlength=4).tolist()
        return {side: counts[outcome] for side, outcome in _OUTCOME_OF_SIDE.items()} | {"all": sum(counts)}

    def of(self, side: str) -> NDArray[np.intp]:
        """The images of one of ``SIDES``, worst first."""
        if side == "all":
            return self.indices
        is_chosen = self.pair.outcomes[self.indices] == _OUTCOME_OF_SIDE[side]
        return np.asarray(self.indices[is_chosen])


def pair_images(loaded: LoadedComparison, a: int, b: int) -> PairImages | None:
    """The images of the runs with these numbers; None where one of them has no predictions."""
    first, second = loaded.predictions[a], loaded.predictions[b]
    return None if first is None or second is None else PairImages(first, second, (a, b))


# By class ------------------------------------------------------------------------------------------------------------


class ClassDifference(BaseModel):
    """One class: its images, both accuracies, and a minus b with its interval (fractions)."""

    label: int
    num_images: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class ClassTable:
    """The classes that have images with their differences drawn, worst for a first.

    Each interval has ``level``, so that all of them hold together in 95 %.
    """

    rows: list[tuple[ClassDifference, Drawing]]
    level: float
    head: Drawing


def class_differences(pair: PairImages, class_names: list[str]) -> tuple[list[ClassDifference], float]:
    """The classes that have images, in their order, and the level of each interval, so that all together hold in 95 %."""
    a, b = pair.a, pair.b
    present = np.unique(a.labels).tolist()
    level = 1 - ALPHA / max(len(present), 1)
    found = statistics.class_differences(a.labels, a.correct, b.correct, num_classes(class_names, a, b), level)

    def one(label: int) -> ClassDifference:
        accuracy_a, accuracy_b = float(found.accuracy_a[label]), float(found.accuracy_b[label])
        return ClassDifference(
            label=label,
            num_images=int(found.num_images[label]),
            accuracy_a=accuracy_a,
            accuracy_b=accuracy_b,
            difference=accuracy_a - accuracy_b,
            interval=(float(found.low[label]), float(found.high[label])),
        )

    return [one(label) for label in present], level


def class_table(pair: PairImages, class_names: list[str]) -> ClassTable:
    """Where the two runs differ, class by class."""
    differences, level = class_differences(pair, class_names)
    strips = DifferenceStrips.around([(100 * row.interval[0], 100 * row.interval[1]) for row in differences])

    def strip(row: ClassDifference) -> Drawing:
        low, high = row.interval
        favours = pair.places[0] if low > 0 else pair.places[1] if high < 0 else None
        return strips.row(100 * row.difference, (100 * low, 100 * high), favours)

    worst_first = sorted(differences, key=lambda row: row.difference)
    return ClassTable([(row, strip(row)) for row in worst_first], level, strips.head())
