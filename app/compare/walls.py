"""Walls of test images: what one run got wrong, and the images on which two runs differ, with their classes.

``places`` are the runs' numbers on a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app import statistics
from app.compare.shapes import ALPHA
from app.draw.compare import DifferenceStrips
from app.draw.svg import Drawing
from app.store.predictions import PredictionQuery, Predictions, load_log_probabilities, query
from trainer.run_folder import RunFolder

_MOST_CLASSES_OF_NORMAL_SIZE = 14  # of a confusion matrix
_MOST_CLASSES_WITH_LONG_NAMES = 5
SIDES = ("a", "b", "wrong", "right", "all")


# Classes of a data set ------------------------------------------------------------------------------------------------


class NamesClasses:
    """What every page that shows test images needs of the names of their classes."""

    classes: Sequence[str]

    @property
    def long_names(self) -> bool:
        return long_names(self.classes)

    def class_name(self, number: int) -> str:
        return class_name(self.classes, number)

    @property
    def is_large_matrix(self) -> bool:
        """Whether a confusion matrix needs smaller letters."""
        return len(self.classes) > _MOST_CLASSES_OF_NORMAL_SIZE

    def head_length(self, of_row: bool) -> int:
        """How many characters of a class's name the head of a row or a column of the matrix has room for."""
        if len(self.classes) <= _MOST_CLASSES_WITH_LONG_NAMES:
            return 16
        return 9 if of_row else 6


def long_names(names: Sequence[str]) -> bool:
    """Whether a name needs wider tiles than a digit does."""
    return any(len(name) > 3 for name in names)


def class_name(names: Sequence[str], number: int) -> str:
    """The name of a class; its number where the data set has no name for it."""
    return names[number] if number < len(names) else str(number)


def num_classes(class_names: Sequence[str], *answers: Predictions) -> int:
    """As many as the data set names, and no fewer than the answers need."""
    return max(len(class_names), *(int(x.max()) + 1 for p in answers for x in (p.labels, p.predicted) if p.num_images))


# How many images a wall shows -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """How many tiles a wall shows at first, how many more each time, and how many at most."""

    first: int
    more: int = 100

    @property
    def most(self) -> int:
        return self.first + 10 * self.more

    def next(self, shown: int) -> int:
        """How many tiles to show after ``shown``; the same number once it is the most."""
        return min(shown + self.more, self.most)


# One run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A test image with the run's prediction, and the address that opens it."""

    index: int
    label: int
    predicted: int
    confidence: float
    href: str


@dataclass(frozen=True)
class Bar:
    """One class with the probability that the net gave it."""

    name: str
    probability: float
    is_label: bool
    is_answer: bool


@dataclass(frozen=True)
class Detail:
    """One image, opened, with the addresses of its neighbours on the wall."""

    tile: Tile
    bars: list[Bar]
    previous: str | None
    next: str | None
    close: str


@dataclass(frozen=True)
class Around:
    """Where an opened image leads: the addresses of its neighbours on the wall, and of the wall without it."""

    previous: str | None
    next: str | None
    close: str


@dataclass(frozen=True)
class Wall:
    """The images whose predictions fit the filters, as many as are shown. ``more`` is the address that shows more."""

    tiles: list[Tile]
    total: int
    more: str | None
    detail: Detail | None


def wall_of(
    found: Predictions,
    wanted: PredictionQuery,
    opened: int | None,
    steps: Steps,
    url: Callable[..., str],
    bars: Callable[[Tile], list[Bar]],
) -> Wall:
    """The wall of one run: by default its wrong predictions, the most confident first.

    ``url`` gives the address of the page with some of its parameters changed, ``bars`` the probabilities of a tile.
    """
    page = query(found, wanted)
    tiles = [
        Tile(item.index, item.label, item.predicted, item.confidence, url(image=item.index) + "#detail")
        for item in page.items
    ]
    more = steps.next(wanted.limit)
    return Wall(
        tiles=tiles,
        total=page.total,
        more=url(shown=more) if page.total > wanted.limit and more > wanted.limit else None,
        detail=None if opened is None or opened >= found.num_images else _detail(found, opened, tiles, url, bars),
    )


def _detail(
    found: Predictions,
    index: int,
    tiles: Sequence[Tile],
    url: Callable[..., str],
    bars: Callable[[Tile], list[Bar]],
) -> Detail:
    tile = Tile(
        index,
        int(found.labels[index]),
        int(found.predicted[index]),
        float(found.confidence[index]),
        url(image=index),
    )
    before, after = neighbours([other.index for other in tiles], index)
    return Detail(
        tile,
        bars(tile),
        None if before is None else tiles[before].href,
        None if after is None else tiles[after].href,
        url(image=None),
    )


def neighbours(shown: Sequence[int], index: int) -> tuple[int | None, int | None]:
    """The positions of the images before and after image ``index`` among those shown; None where there is none."""
    if index not in shown:
        return None, None
    position = shown.index(index)
    return position - 1 if position else None, position + 1 if position + 1 < len(shown) else None


def bars_of(folder: RunFolder, epoch: int, class_names: Sequence[str], tile: Tile) -> list[Bar]:
    """The five most probable classes and the true one; empty where the run kept no probabilities for this epoch."""
    stored = load_log_probabilities(folder, epoch)
    if stored is None:
        return []
    probabilities = np.exp(stored[tile.index].astype(np.float64))
    best = [int(number) for number in np.argsort(-probabilities, kind="stable")[:5]]
    shown = best if tile.label in best else [*best, tile.label]
    return [
        Bar(class_name(class_names, n), float(probabilities[n]), n == tile.label, n == tile.predicted) for n in shown
    ]


# Two runs --------------------------------------------------------------------------------------------------------------


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


# Two runs by class ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassRow:
    """One class: its images, both accuracies, and their difference with its interval (fractions), drawn."""

    label: int
    count: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    strip: Drawing


@dataclass(frozen=True)
class ClassTable:
    """The classes that have images, worst for a first. Each interval has ``level``: together they hold in 95 %."""

    rows: list[ClassRow]
    level: float
    head: Drawing


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
    strips = DifferenceStrips.around([(100 * one.interval[0], 100 * one.interval[1]) for one in found])

    def row(one: ClassDifference) -> ClassRow:
        low, high = one.interval
        favours = places[0] if low > 0 else places[1] if high < 0 else None
        return ClassRow(
            label=one.label, count=one.num_images, a=one.accuracy_a, b=one.accuracy_b, difference=one.difference,
            interval=one.interval, strip=strips.row(100 * one.difference, (100 * low, 100 * high), favours),
        )  # fmt: skip

    return ClassTable([row(one) for one in sorted(found, key=lambda one: one.difference)], level, strips.head())
