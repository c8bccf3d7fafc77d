"""The difficulty page: images that all runs get wrong, disputed and forgotten images, and the vote of the runs."""

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
MOST_NAMED = 8  # most runs that are listed by name beside a class of the opened image


class DifficultyQuery(BaseModel):
    """The URL parameters of the page: the runs, and which images are shown."""

    run: list[str] = []
    at: str = "last"
    side: Literal["wrong", "disputed", "forgotten"] | None = None  # None: the first side with images
    label: int | None = Field(None, ge=0, le=65_535)
    shown: int = Field(TILES.first, ge=1, le=TILES.most)
    image: int | None = Field(None, ge=0)

    @property
    def ids(self) -> list[str]:
        return list(dict.fromkeys(run for run in self.run if run))

    def pairs(self, **changes: Any) -> list[tuple[str, str]]:
        """The URL parameters that are not at their defaults, as (name, value)."""
        values = self.model_copy(update={"run": self.ids, **changes}).model_dump(
            exclude_defaults=True, exclude_none=True
        )
        return [(n, str(one)) for n, value in values.items() for one in (value if isinstance(value, list) else [value])]


# What the page shows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A test image: the class that most runs predict, and how often it was predicted correctly or forgotten."""

    index: int
    label: int
    answer: int
    num_agreeing: int
    num_right: int
    forgotten: float


@dataclass(frozen=True)
class PredictedClass:
    """A class that runs predict for the opened image."""

    answer: int
    count: int
    names: list[str]  # names of these runs without the part that all share; empty if there are many


@dataclass(frozen=True)
class Detail:
    """The opened image; ``classes`` starts with the class that is predicted most often."""

    tile: Tile
    classes: list[PredictedClass]
    previous: int | None
    next: int | None


@dataclass(frozen=True)
class Tab:
    """A tab for one kind of images, with their number."""

    side: str
    words: str
    count: int
    href: str
    is_current: bool


@dataclass(frozen=True)
class VoteLine:
    """The accuracy of the vote compared with the single runs."""

    accuracy: float
    interval: Interval
    mean: float
    lowest: float
    best: float
    best_interval: Interval
    best_run: str  # id of the run
    best_name: str
    difference: float
    difference_interval: Interval

    @property
    def words(self) -> str:
        """A sentence about whether the vote is better than the best single run."""
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
    result: Difficulty | None
    side: str  # the one that is shown
    counts: dict[str, int]  # side -> number of images of the chosen class
    num_right_in_all: int
    num_never_right: int
    tiles: list[Tile]
    detail: Detail | None
    vote: VoteLine | None
    classes: list[ClassDifficulty]
    names: list[str]
    images: Images | None

    def url(self, **changes: Any) -> str:
        """A URL of this page. A change of filters goes back to the first tiles and closes the opened image."""
        if not changes.keys() & {"image", "shown"}:
            changes = {"image": None, "shown": TILES.first, **changes}
        return "/difficulty?" + urlencode(self.query.pairs(**changes))

    @property
    def num_runs(self) -> int:
        return len(self.result.runs) if self.result else 0

    @property
    def num_epochs(self) -> int:
        """The largest number of epochs over which forgetting was counted in a run."""
        return max((run.forgetting.num_epochs for run in self.result.runs), default=0) if self.result else 0

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
        """The links of the opened image."""
        assert self.detail is not None
        before, after = self.detail.previous, self.detail.next
        return Around(
            None if before is None else self.url(image=before),
            None if after is None else self.url(image=after),
            self.url(image=None),
        )

    @property
    def has_many(self) -> bool:
        """Whether there are several runs."""
        return self.num_runs > 1

    @property
    def is_wrong_side(self) -> bool:
        """Whether the page shows the images that all runs get wrong."""
        return self.side == "wrong"

    @property
    def title(self) -> str:
        if not self.result:
            return _("Difficulty over runs")
        words = ngettext("Difficulty over {n} run", "Difficulty over {n} runs", self.num_runs)
        return words.format(n=number(self.num_runs))

    @property
    def order_words(self) -> str:
        """A caption about the order of the images and how they are drawn."""
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
        """How many tiles the link for more adds."""
        left = self.total - len(self.tiles)
        return min(TILES.more, left) if self.query.shown < TILES.most else 0

    @property
    def more_url(self) -> str:
        return self.url(shown=TILES.next(self.query.shown))

    @property
    def hidden(self) -> list[tuple[str, str]]:
        """The hidden fields of the form, as (name, value)."""
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
    """The difficulty page for the runs in the URL."""
    runs = runs_to_compare(session, query.ids)
    version = ".".join([*(str(run.version) for run in runs), queries.data_version(session)])
    if same := templating.unchanged(request, version):
        return same
    header = header_from(state, queries.status_counts(session))
    page = _page(state, query, runs)
    live = any(run.status in ACTIVE for run in runs)
    return templating.render(request, "difficulty.html", page, version=version, live=live, header=header)


def _page(state: Runoff, query: DifficultyQuery, runs: list[Run]) -> DifficultyPage:
    result, left_out = difficulty.load(state, runs, query.at)
    if result is None:
        return DifficultyPage(query, runs, left_out, None, SIDES[0], {}, 0, 0, [], None, None, [], [], None)
    first = next(run for run in runs if run.id == result.runs[0].id)
    sides = {side: result.images(side, query.label) for side in SIDES}
    side: str = query.side or next((name for name in SIDES if sides[name]), SIDES[0])
    shown = sides[side][: query.shown]
    return DifficultyPage(
        query=query,
        runs=runs,
        left_out=left_out,
        result=result,
        side=side,
        counts={name: len(indices) for name, indices in sides.items()},
        num_right_in_all=int((result.num_right == len(result.runs)).sum()),
        num_never_right=int(result.never_right.sum()),
        tiles=[_tile(result, index) for index in shown],
        detail=_detail(result, query.image, shown),
        vote=_vote(result),
        classes=difficulty.by_class(result),
        names=result.class_names,
        images=images_of(state.settings.home, first, "test"),
    )


def _tile(result: Difficulty, index: int) -> Tile:
    return Tile(
        index,
        int(result.labels[index]),
        int(result.vote[index]),
        int(result.num_agreeing[index]),
        int(result.num_right[index]),
        float(result.forgotten[index]),
    )


def _detail(result: Difficulty, index: int | None, shown: Sequence[int]) -> Detail | None:
    if index is None or index >= result.num_images:
        return None
    at = shown.index(index) if index in shown else None
    answers, counts = np.unique(result.predicted[:, index], return_counts=True)
    shared = common_name([run.name for run in result.runs])
    names = [run.name.removeprefix(shared).removeprefix(", ") or run.name for run in result.runs]
    classes = [
        PredictedClass(
            answer,
            count,
            _few([n for n, given in zip(names, result.predicted[:, index], strict=True) if given == answer]),
        )
        for answer, count in sorted(zip(answers.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    ]
    return Detail(
        _tile(result, index),
        classes,
        shown[at - 1] if at else None,
        shown[at + 1] if at is not None and at + 1 < len(shown) else None,
    )


def _few(names: list[str]) -> list[str]:
    return names if len(names) <= MOST_NAMED else []


def _vote(result: Difficulty) -> VoteLine:
    accuracies, best = result.accuracies, result.best
    difference, interval = result.vote_against_best()
    return VoteLine(
        accuracy=float(result.vote_correct.mean()),
        interval=difficulty.interval_of(result.vote_correct),
        mean=float(result.correct.mean()),
        lowest=min(accuracies),
        best=accuracies[best],
        best_interval=difficulty.interval_of(result.correct[best]),
        best_run=result.runs[best].id,
        best_name=result.runs[best].name,
        difference=difference,
        difference_interval=interval,
    )
