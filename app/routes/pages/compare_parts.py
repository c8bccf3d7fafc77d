"""Parts of the compare page: rows and lines, and the lists and links from which one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.compare import confusion_matrix
from app.compare.pair_images import ClassTable, SharedTile
from app.compare.shapes import Pair
from app.compare.view import ShownRun
from app.draw.svg import Drawing
from app.words import percent
from trainer.i18n import _

SMOOTHING = (0.0, 0.5, 0.8, 0.9, 0.95)  # what the page offers
_MOST_EPOCHS = 100  # in a list

Url = Callable[..., str]  # the address of the page with some of its fields changed


@dataclass(frozen=True)
class Evidence:
    """The images, matrices and classes of the pair in focus. ``matrix`` is empty where there are too many classes."""

    counts: dict[str, int]
    tiles: list[SharedTile]
    total: int
    more: bool
    detail: SharedTile | None
    previous: int | None
    next: int | None
    matrix: list[list[confusion_matrix.DifferenceCell]]
    classes: ClassTable


@dataclass(frozen=True)
class PairLine:
    """One row of the table of pairs."""

    pair: Pair
    strip: Drawing | None
    a: ShownRun
    b: ShownRun | None  # None where all pairs have the same base
    href: str
    is_current: bool
    is_optimistic: bool


# Choices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One entry of a list to choose from."""

    value: str
    words: str
    is_chosen: bool = False


@dataclass(frozen=True)
class Link:
    """One part of a choice that changes the address."""

    words: str
    href: str
    is_current: bool


@dataclass(frozen=True)
class Tab:
    """One of the kinds of images, with how many there are."""

    side: str
    words: str
    count: int
    href: str
    is_current: bool


def bases(shown: Sequence[ShownRun], chosen: str | None, *, all_pairs: bool) -> list[Option]:
    """The runs that the others can be compared with, and all pairs where that is possible."""
    none = [Option("", _("none: all pairs"))] if all_pairs else []
    return none + [Option(one.run.id, f"{one.letter} {one.full_name}", one.run.id == chosen) for one in shown]


def additions(offered: Iterable[tuple[str, str, float | None]]) -> list[Option]:
    """The runs that can be added, from id, name and test accuracy."""
    return [
        Option(run_id, (name or run_id) + ("" if accuracy is None else f" · {percent(accuracy)} %"))
        for run_id, name, accuracy in offered
    ]


def epochs(chosen: str, least: int) -> list[Option]:
    """The epochs that can be compared: the ``least`` ones that every run has, or of many only the chosen one."""
    found = [("last", _("last epoch")), ("best", _("best epoch"))]
    numbers: list[str] = []
    if least <= _MOST_EPOCHS:
        numbers = [str(n) for n in range(1, least + 1)]
    elif chosen not in ("last", "best"):
        numbers = [chosen]
    found += [(n, _("epoch {n}").format(n=n)) for n in numbers]
    return [Option(value, words, value == chosen) for value, words in found]


def axes(chosen: str, url: Url) -> list[Link]:
    words = {"epoch": _("Epoch"), "seconds": _("Seconds"), "images": _("Images seen"), "flops": _("FLOPs")}
    return [Link(text, url(x=axis), axis == chosen) for axis, text in words.items()]


def smoothings(chosen: float) -> list[Option]:
    """The weights that are offered, with the one in the address."""
    return [
        Option(f"{weight:g}" if weight else "", f"{weight:g}" if weight else _("off"), weight == chosen)
        for weight in sorted({*SMOOTHING, chosen})
    ]


def tabs(a: str, b: str, counts: Mapping[str, int], chosen: str, url: Url) -> list[Tab]:
    """The kinds of images of two runs with these names, with how many there are."""
    words = {
        "a": _("Only {name} right").format(name=a),
        "b": _("Only {name} right").format(name=b),
        "wrong": _("Both wrong"),
        "right": _("Both right"),
        "all": _("All"),
    }
    return [Tab(side, words[side], counts[side], url(side=side), side == chosen) for side in words]
