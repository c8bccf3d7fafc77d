"""What the compare page shows: the runs, the pair in focus, and the parts of the page, in words and links."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from app.compare import confusion_matrix, curves, walls
from app.compare.budget import ToAccuracy
from app.compare.curves import LegendLine
from app.compare.load import MAX_COMPARED
from app.compare.more_seeds import MoreSeeds
from app.compare.pair_images import ClassDifference
from app.compare.shapes import Comparison, Pair
from app.compare.view import ConfigRow, Focus, PairTable, ShownRun
from app.compare.walls import Around
from app.draw.markers import colour_of
from app.draw.svg import Drawing
from app.routes.pages import compare_parts
from app.routes.pages.compare_parts import Evidence, Link, Option, PairLine, Tab
from app.routes.pages.compare_query import TILES, CompareQuery
from app.schemas import RunOut
from app.store.images import Images
from app.words import compact, number, whole_seconds
from trainer.i18n import _, ngettext

_MOST_OPEN_CHIPS = 8  # of more runs the names are folded away
_MOST_SIDE_BY_SIDE = 2  # columns of runs that leave room for a second card
_MOST_ROWS = 12  # of a table that is not scrolled
_NUM_PERMUTED = 10  # images shown with their pixels permuted


@dataclass(frozen=True)
class ComparePage(walls.NamesClasses):
    """Variables of compare.html."""

    query: CompareQuery
    shown: list[ShownRun]
    comparison: Comparison
    base: str | None
    focus: Focus
    pairs: PairTable
    more: MoreSeeds | None
    to_accuracy: ToAccuracy
    legend: list[LegendLine]
    has_repeats: bool
    evidence: Evidence | None
    images: Images | None
    classes: list[str]
    config: list[ConfigRow]
    offered: list[tuple[str, str, float | None]]  # (id, name, test accuracy)
    margin_problem: str
    figure_version: str

    def url(self, **changes: Any) -> str:
        """A link within the page; whatever changes what is listed begins at the first tiles, with no image open."""
        if not changes.keys() & {"image", "shown", "x", "margin", "to", "smooth", "loss", "over", "value", "config"}:
            changes = {"image": None, "shown": TILES.first, **changes}
        return self.query.url(**changes)

    def fields(self, *asked: str) -> list[tuple[str, str]]:
        """The URL's fields for a form that asks for some of them itself."""
        return [(name, value) for name, value in self.query.pairs() if name not in asked]

    @cached_property
    def by_id(self) -> dict[str, ShownRun]:
        return {one.run.id: one for one in self.shown}

    @property
    def pair(self) -> Pair:
        return self.focus.pair

    @property
    def a(self) -> ShownRun:
        return self.focus.a

    @property
    def b(self) -> ShownRun:
        return self.focus.b

    @property
    def base_by_default(self) -> bool:
        """Whether nobody chose the base run."""
        return self.base is not None and self.base != self.query.base

    @property
    def defects(self) -> list[str]:
        """What is wrong with runs, each with its name in front."""
        return [f"{one.full_name}: {one.answers.defect}" for one in self.shown if one.answers.defect]

    @property
    def best_of(self) -> str:
        """The id of the run that was chosen as the best of several, or ""."""
        return self.comparison.best_of.run if self.comparison.best_of else ""

    @property
    def without_flops(self) -> list[str]:
        """The runs that the axis of FLOPs leaves out."""
        if self.query.x != "flops":
            return []
        return [one.full_name for one in self.shown if one.run.epochs_done and one.run.flops is None]

    # The bar: which runs, and at which epoch

    @property
    def is_pair(self) -> bool:
        """Whether there are two runs, and so one pair."""
        return len(self.shown) == 2

    @property
    def folds_runs(self) -> bool:
        return len(self.shown) > _MOST_OPEN_CHIPS

    @property
    def bases(self) -> list[Option]:
        return compare_parts.bases(self.shown, self.base, all_pairs=not self.folds_runs)

    @property
    def additions(self) -> list[Option]:
        return compare_parts.additions(self.offered)

    @property
    def epochs(self) -> list[Option]:
        return compare_parts.epochs(self.query.at, min(one.run.epochs_done for one in self.shown))

    # The verdict

    @property
    def verdict_class(self) -> str:
        """The colour of the winner, else the kind of the verdict."""
        winner = self.focus.winner
        return f"w{winner.colour}" if winner else self.pair.verdict

    @property
    def is_inconclusive(self) -> bool:
        return self.pair.verdict == "inconclusive"

    @property
    def level_words(self) -> str:
        return compact(100 * self.comparison.level, 4)

    @property
    def detectable_words(self) -> str:
        """The smallest difference that the test would find, where it has found none."""
        smallest = self.pair.smallest_detectable_difference
        if not self.is_inconclusive or not smallest:
            return ""
        return _("{n} points").format(n=f"{100 * smallest:.1f}")

    @property
    def notes(self) -> list[str]:
        """What is to be said of the pair, without what stands beside the table of pairs."""
        elsewhere: list[str] = []
        if not self.is_pair:
            elsewhere = [
                *self.comparison.notes[:1],
                *([self.comparison.best_of.text] if self.comparison.best_of else []),
            ]
        return [note for note in self.comparison.notes if note not in elsewhere] + self.pair.notes

    @property
    def more_words(self) -> str:
        """How many more runs are offered, and how long they take."""
        if not self.more:
            return ""
        words = ngettext("{n} more run", "{n} more runs", self.more.num_runs).format(n=number(self.more.num_runs))
        if self.more.seconds:
            time = whole_seconds(self.more.seconds)
            words += ", " + _("about {time} on this machine").format(time=time)
        return words + "."

    @property
    def more_images_words(self) -> str:
        """Whether more test images would decide it."""
        needed = self.pair.num_images_needed
        if not needed or needed <= self.pair.num_images:
            return _("There are enough: the interval is already as narrow as the margin requires.")
        return _(
            "An interval of ±{margin} points needs about {n} test images. "
            "The data set has only {have}, so this is not an option here."
        ).format(margin=compact(100 * self.comparison.margin), n=number(needed), have=number(self.pair.num_images))

    # Recipes and budget

    @property
    def is_narrow(self) -> bool:
        """Whether two cards of recipes and budget fit side by side."""
        return len(self.shown) <= _MOST_SIDE_BY_SIDE

    @property
    def groups_words(self) -> str:
        """The recipes with how many seeds each has."""
        return ", ".join(
            ngettext("{name} {n} seed", "{name} {n} seeds", len(group.seeds)).format(
                name=group.name, n=len(group.seeds)
            )
            for _place, group in self.focus.groups
        )

    @property
    def permuted(self) -> list[int]:
        """The images that are shown with their pixels permuted."""
        if not self.images or self.images.permutation is None or not self.evidence:
            return []
        return list(range(min(_NUM_PERMUTED, self.pair.num_images)))

    # Curves

    @property
    def axes(self) -> list[Link]:
        return compare_parts.axes(self.query.x, self.url)

    @property
    def curves_words(self) -> str:
        """What the bands and thin lines are."""
        if self.query.over == "seeds" and self.has_repeats:
            return _("thin lines: single seeds; thick line and band: mean with its 95 % interval (t)")
        if self.is_detailed and not self.query.smooth:
            return _("band: 95 % interval of the accuracy")
        return ""

    @property
    def smoothings(self) -> list[Option]:
        return compare_parts.smoothings(self.query.smooth)

    @property
    def loss_title(self) -> str:
        if self.is_detailed and self.query.over == "runs":
            return _("Loss: test (line), training (dotted)")
        return _("Test loss")

    # Images and matrices

    @property
    def tabs(self) -> list[Tab]:
        assert self.evidence is not None
        return compare_parts.tabs(self.a.name, self.b.name, self.evidence.counts, self.query.side, self.url)

    @property
    def around(self) -> Around:
        """Where the opened image leads."""
        assert self.evidence is not None
        before, after = self.evidence.previous, self.evidence.next
        return Around(
            None if before is None else self.url(image=before),
            None if after is None else self.url(image=after),
            self.url(image=None),
        )

    @property
    def order_words(self) -> str:
        words = _("worst first: by the confidence of the wrong prediction")
        if self.images and self.images.permutation is not None:
            words += "; " + _("shown without the permutation")
        return words

    @property
    def difficulty_url(self) -> str:
        pairs = [("run", run_id) for run_id in self.query.ids]
        return "/difficulty?" + urlencode(pairs + ([("at", self.query.at)] if self.query.at != "last" else []))

    @property
    def num_more(self) -> int:
        """How many tiles the wall shows further at once."""
        assert self.evidence is not None
        return min(TILES.more, self.evidence.total - len(self.evidence.tiles)) if self.evidence.more else 0

    @property
    def more_url(self) -> str:
        return self.url(shown=TILES.next(self.query.shown))

    def is_chosen_cell(self, label: int, predicted: int | None) -> bool:
        """Whether the wall shows the images of that cell, or without ``predicted`` of that class."""
        return self.query.label == label and self.query.predicted == predicted

    def cell_class(self, cell: confusion_matrix.DifferenceCell) -> str:
        hatched = " second" if self.same_colour and cell.favours == self.b.place else ""
        return f"hue{colour_of(cell.favours)} h{cell.heat}{hatched}"

    def class_url(self, row: ClassDifference) -> str:
        """The images of a class on which the worse run is wrong."""
        side = "b" if row.difference < 0 else "a" if row.difference > 0 else "all"
        return self.url(side=side, label=row.label, predicted=None)

    # Tables

    @property
    def pairs_title(self) -> str:
        if self.base:
            return _("Differences against {name}").format(name=self.by_id[self.base].name)
        return _("All pairs")

    @property
    def pairs_note(self) -> str:
        """How the pairs were chosen, and what is to be said of all of them."""
        sentences = self.comparison.notes[:1]
        if self.base_by_default:
            text = _(
                "With more than 8 runs there are too many pairs to show, so every run is compared with the first one. "
                "You can choose another base run."
            )
            sentences = [text, *sentences]
        return " ".join(sentences)

    @property
    def pair_lines(self) -> list[PairLine]:
        return [self._pair_line(pair, strip) for pair, strip in self.pairs.rows]

    def _pair_line(self, pair: Pair, strip: Drawing | None) -> PairLine:
        best_in = {pair.a} if self.base else {pair.a, pair.b}
        return PairLine(
            pair=pair,
            strip=strip,
            a=self.by_id[pair.a],
            b=None if self.base else self.by_id[pair.b],
            href=self.url(pair=f"{pair.a}.{pair.b}", side="a"),
            is_current=(pair.a, pair.b) == (self.pair.a, self.pair.b),
            is_optimistic=self.best_of in best_in,
        )

    @property
    def has_many_pairs(self) -> bool:
        return len(self.pairs.rows) > _MOST_ROWS

    @property
    def has_many_runs(self) -> bool:
        return len(self.shown) > _MOST_ROWS

    def is_base(self, one: ShownRun) -> bool:
        """Whether the others' fields are compared with those of the run."""
        return one.run.id == (self.base or (self.shown[-1].run.id if self.is_pair else ""))

    @property
    def config_rows(self) -> list[ConfigRow]:
        """The fields listed."""
        return [row for row in self.config if row.is_different or self.query.config == "all"]

    @property
    def different_fields(self) -> list[str]:
        return [row.field for row in self.config if row.is_different]

    @property
    def is_detailed(self) -> bool:
        """Whether single curves show their bands and training losses."""
        return len(self.legend) <= curves.MOST_DETAILED

    @property
    def same_colour(self) -> bool:
        """Whether the two runs in focus share a colour, so that something else must tell them apart."""
        return self.a.colour == self.b.colour

    def figure_url(self, figure: str) -> str:
        shown = [(n, v) for n, v in self.query.pairs() if n in ("run", "x", "smooth", "loss", "over")]
        return f"/compare/figures/{figure}.json?" + urlencode(shown)

    def export_url(self, what: str) -> str:
        """The address of the same comparison in the API: "" for JSON, else pairs.csv, epochs.csv or report."""
        fields = [("run", i) for i in self.query.ids] + [("at", self.query.at), ("margin", str(self.comparison.margin))]
        if self.base:
            fields.append(("base", self.base))
        if what == "" and self.to_accuracy.accuracy:
            fields.append(("accuracy", f"{self.to_accuracy.accuracy:g}"))
        if what == "report":
            fields.append(("pair", f"{self.pair.a}.{self.pair.b}"))
            fields += [(n, v) for n, v in self.query.pairs() if n in ("x", "smooth", "loss", "over")]
        return "/api/v1/compare" + (f"/{what}" if what else "") + "?" + urlencode(fields)


@dataclass(frozen=True)
class PickPage:
    """Variables of compare_pick.html: fewer than two runs are chosen."""

    query: CompareQuery
    chosen: set[str]
    offered: list[RunOut]
    start: RunOut | None
    most: int = MAX_COMPARED

    def reason(self, run: RunOut) -> str:
        """Why a run can't be told from the chosen one; "" where it can."""
        if not run.epochs_done:
            return _("no finished epoch yet")
        if self.start and self.start.test_fingerprint and run.test_fingerprint != self.start.test_fingerprint:
            return _("tested on other images")
        return ""
