"""The wall of one run's test images, by default those that it got wrong, and what all walls have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from app.store.predictions import PredictionQuery, Predictions, load_log_probabilities, query
from trainer.run_folder import RunFolder

_MOST_CLASSES_OF_NORMAL_SIZE = 14  # of a confusion matrix
_MOST_CLASSES_WITH_LONG_NAMES = 5


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


def neighbours(shown: Sequence[int], index: int | None) -> tuple[int | None, int | None]:
    """The positions of the images before and after image ``index`` among those shown; None where there is none."""
    if index is None or index not in shown:
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
