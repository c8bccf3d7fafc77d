"""The page of difficulty over runs: images that all get wrong, that are disputed or forgotten, and the vote of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from app.compare import difficulty
from app.compare.difficulty import SIDES, ClassDifficulty, Difficulty, Interval, LeftOut
from app.compare.load import runs_to_compare
from app.compare.walls import Around, Steps, class_name, long_names
from app.runs.sweeps import common_name
from app.state import Runoff
from app.store import queries
from app.store.images import Images, images_of
from app.store.tables import ACTIVE, Run
from app.web import templating
from app.web.deps import Reading, State
from app.web.frame import header_from
from app.words import number, points
from trainer.i18n import _, ngettext

router = APIRouter()
TILES = Steps(first=45)
MOST_NAMED = 8  # runs whose names a class of the opened image lists


class DifficultyQuery(BaseModel):
    """Which runs, and which images are shown; it stands in the URL."""

    run: list[str] = []
    at: str = "last"
    side: Literal["wrong", "disputed", "forgotten"] | None = None  # the first that has images
    label: int | None = Field(None, ge=0, le=65_535)
    shown: int = Field(TILES.first, ge=1, le=TILES.most)
    image: int | None = Field(None, ge=0)

    @property
    def ids(self) -> list[str]:
        return list(dict.fromkeys(run for run in self.run if run))

    def pairs(self, **changes: Any) -> list[tuple[str, str]]:
        """The fields of the URL that are not at their defaults, as (name, value)."""
        values = self.model_copy(update={"run": self.ids, **changes}).model_dump(
            exclude_defaults=True, exclude_none=True
        )
        return [(n, str(one)) for n, value in values.items() for one in (value if isinstance(value, list) else [value])]


# What the page shows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One test image: what most runs say, how many of them, how many are right, how often a run forgot it on average."""

    index: int
    label: int
    answer: int
    num_agreeing: int
    num_right: int
    forgotten: float


@dataclass(frozen=True)
class Said:
    """One class that runs named for the opened image."""

    answer: int
    count: int
    names: list[str]  # of these runs without what all share; empty where they are many


@dataclass(frozen=True)
class Detail:
    """One image, opened; ``said`` has the most frequent answer first."""

    tile: Tile
    said: list[Said]
    previous: int | None
    next: int | None


@dataclass(frozen=True)
class Tab:
    """One of the kinds of images, with how many there are."""

    side: str
    words: str
    count: int
    href: str
    is_current: bool


@dataclass(frozen=True)
class VoteLine:
    """The vote beside the single runs."""

    accuracy: float
    interval: Interval
    mean: float
    lowest: float
    best: float
    best_interval: Interval
    best_run: str  # its position's id
    best_name: str
    difference: float
    difference_interval: Interval

    @property
    def words(self) -> str:
        """Whether the vote is better than the best single run."""
        low, high = self.difference_interval
        numbers = _("{difference} points, interval {low} to {high}").format(
            difference=points(self.difference), low=points(low), high=points(high)
        )
        if low > 0:
            return _("The vote is better than the best single run: {numbers}.").format(numbers=numbers)
        if high < 0:
            return _("The best single run is better than the vote: {numbers}.").format(numbers=numbers)
        return _("Vote and best single run are too close to call: {numbers}.").format(numbers=numbers)


@dataclass(frozen=True)
class DifficultyPage:
    """Variables of difficulty.html."""

    query: DifficultyQuery
    runs: list[Run]
    left_out: list[LeftOut]
    found: Difficulty | None
    side: str  # that is shown
    counts: dict[str, int]  # side -> images under the chosen class
    num_right_in_all: int
    num_never_right: int
    tiles: list[Tile]
    detail: Detail | None
    vote: VoteLine | None
    classes: list[ClassDifficulty]
    names: list[str]
    images: Images | None

    def url(self, **changes: Any) -> str:
        """A link within the page; whatever changes what is listed begins at the first tiles, with no image open."""
        if not changes.keys() & {"image", "shown"}:
            changes = {"image": None, "shown": TILES.first, **changes}
        return "/difficulty?" + urlencode(self.query.pairs(**changes))

    @property
    def num_runs(self) -> int:
        return len(self.found.runs) if self.found else 0

    @property
    def num_epochs(self) -> int:
        """Epochs over which forgetting was counted, of the run with most."""
        return max((run.forgetting.num_epochs for run in self.found.runs), default=0) if self.found else 0

    @property
    def total(self) -> int:
        return self.counts.get(self.side, 0)

    @property
    def long_names(self) -> bool:
        return long_names(self.names)

    def class_name(self, number: int) -> str:
        return class_name(self.names, number)

    @property
    def around(self) -> Around:
        """Where the opened image leads."""
        assert self.detail is not None
        before, after = self.detail.previous, self.detail.next
        return Around(
            None if before is None else self.url(image=before),
            None if after is None else self.url(image=after),
            self.url(image=None),
        )

    @property
    def has_many(self) -> bool:
        """Whether runs can disagree."""
        return self.num_runs > 1

    @property
    def is_wrong_side(self) -> bool:
        """Whether the images are shown that all runs get wrong."""
        return self.side == "wrong"

    @property
    def title(self) -> str:
        if not self.found:
            return _("Difficulty over runs")
        words = ngettext("Difficulty over {n} run", "Difficulty over {n} runs", self.num_runs)
        return words.format(n=number(self.num_runs))

    @property
    def order_words(self) -> str:
        """Which images come first, and how they are drawn."""
        if self.side == "wrong":
            words = _("first those for which all runs predict the same wrong class: check their labels")
        elif self.side == "disputed":
            words = _("half of the runs are right; the most often forgotten first")
        else:
            words = ngettext(
                "right after one epoch, wrong after the next; counted over {n} epoch",
                "right after one epoch, wrong after the next; counted over {n} epochs",
                self.num_epochs,
            ).format(n=number(self.num_epochs))
        if self.images and self.images.permutation is not None:
            words += "; " + _("shown without the permutation")
        return words

    @property
    def tabs(self) -> list[Tab]:
        words = {"wrong": _("Wrong in all"), "disputed": _("Disputed"), "forgotten": _("Forgotten")}
        return [Tab(side, words[side], self.counts[side], self.url(side=side), side == self.side) for side in words]

    @property
    def num_more(self) -> int:
        """How many tiles the wall can show further."""
        left = self.total - len(self.tiles)
        return min(TILES.more, left) if self.query.shown < TILES.most else 0

    @property
    def more_url(self) -> str:
        return self.url(shown=TILES.next(self.query.shown))

    @property
    def hidden(self) -> list[tuple[str, str]]:
        """The URL's fields for the form, without those that it asks for."""
        return [pair for pair in self.query.pairs() if pair[0] not in ("label", "shown", "image")]

    @property
    def compare_url(self) -> str:
        return "/compare?" + urlencode([("run", run.id) for run in self.runs])

    @property
    def api_url(self) -> str:
        pairs = [("run", run.id) for run in self.runs] + ([("at", self.query.at)] if self.query.at != "last" else [])
        return "/api/v1/difficulty?" + urlencode(pairs)


# Route ---------------------------------------------------------------------------------------------------------------


@router.get("/difficulty")
def show(request: Request, state: State, session: Reading, query: Annotated[DifficultyQuery, Query()]) -> Response:
    """Which images are hard for these runs."""
    found = runs_to_compare(session, query.ids)
    version = ".".join([*(str(run.version) for run in found), queries.data_version(session)])
    if same := templating.unchanged(request, version):
        return same
    header = header_from(state, queries.status_counts(session))
    page = _page(state, query, found)
    live = any(run.status in ACTIVE for run in found)
    return templating.render(request, "difficulty.html", page, version=version, live=live, header=header)


def _page(state: Runoff, query: DifficultyQuery, runs: list[Run]) -> DifficultyPage:
    found, left_out = difficulty.load(state, runs, query.at)
    if found is None:
        return DifficultyPage(query, runs, left_out, None, SIDES[0], {}, 0, 0, [], None, None, [], [], None)
    first = next(run for run in runs if run.id == found.runs[0].id)
    sides = {side: found.images(side, query.label) for side in SIDES}
    side: str = query.side or next((name for name in SIDES if sides[name]), SIDES[0])
    shown = sides[side][: query.shown]
    return DifficultyPage(
        query=query,
        runs=runs,
        left_out=left_out,
        found=found,
        side=side,
        counts={name: len(indices) for name, indices in sides.items()},
        num_right_in_all=int((found.num_right == len(found.runs)).sum()),
        num_never_right=int(found.never_right.sum()),
        tiles=[_tile(found, index) for index in shown],
        detail=_detail(found, query.image, shown),
        vote=_vote(found),
        classes=difficulty.by_class(found),
        names=found.class_names,
        images=images_of(state.settings.home, first, "test"),
    )


def _tile(found: Difficulty, index: int) -> Tile:
    return Tile(
        index,
        int(found.labels[index]),
        int(found.vote[index]),
        int(found.num_agreeing[index]),
        int(found.num_right[index]),
        float(found.forgotten[index]),
    )


def _detail(found: Difficulty, index: int | None, shown: Sequence[int]) -> Detail | None:
    if index is None or index >= found.num_images:
        return None
    at = shown.index(index) if index in shown else None
    answers, counts = np.unique(found.predicted[:, index], return_counts=True)
    shared = common_name([run.name for run in found.runs])
    names = [run.name.removeprefix(shared).removeprefix(", ") or run.name for run in found.runs]
    said = [
        Said(
            answer,
            count,
            _few([n for n, given in zip(names, found.predicted[:, index], strict=True) if given == answer]),
        )
        for answer, count in sorted(zip(answers.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    ]
    return Detail(
        _tile(found, index),
        said,
        shown[at - 1] if at else None,
        shown[at + 1] if at is not None and at + 1 < len(shown) else None,
    )


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= MOST_NAMED else []


def _vote(found: Difficulty) -> VoteLine:
    accuracies, best = found.accuracies, found.best
    difference, interval = found.vote_against_best()
    return VoteLine(
        accuracy=float(found.vote_correct.mean()),
        interval=difficulty.interval_of(found.vote_correct),
        mean=float(found.correct.mean()),
        lowest=min(accuracies),
        best=accuracies[best],
        best_interval=difficulty.interval_of(found.correct[best]),
        best_run=found.runs[best].id,
        best_name=found.runs[best].name,
        difference=difference,
        difference_interval=interval,
    )
