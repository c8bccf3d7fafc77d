"""Parts of a comparison that its page and its report share: the runs shown, the pair in focus, pairs and fields as rows.

Pure over a loaded comparison; what a difference means is ``app.compare.comparison``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from app.compare.load import LoadedComparison
from app.compare.names import letter
from app.compare.recipe_verdicts import seeds_text
from app.compare.shapes import Comparison, ConfigDifference, Group, Pair, Recipe, Score, Verdict
from app.compare.verdicts import equivalence_text
from app.draw.compare import DifferenceStrips, ForestRow, SeedRow, forest_plot, seeds_chart
from app.draw.markers import colour_of
from app.draw.svg import Drawing, ResponsiveDrawing
from app.schemas import RunOut
from app.store import queries
from app.store.tables import Run
from app.words import p_text, points, value_words
from trainer.config import FIELDS, MODELS
from trainer.i18n import _, ngettext

MOST_ALL_PAIRS = 8  # runs of which all pairs are shown; of more, the differences against one base


# Runs ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownRun:
    """One run of a comparison: its number (letter, colour, mark), the name used in sentences, and its answers."""

    place: int
    run: Run
    out: RunOut
    name: str
    answers: Score

    @property
    def letter(self) -> str:
        return letter(self.place)

    @property
    def colour(self) -> int:
        """The number of its colour, 1 to 8."""
        return colour_of(self.place)

    @property
    def epoch(self) -> int | None:
        """The epoch compared."""
        return self.answers.epoch

    @property
    def full_name(self) -> str:
        return self.run.name or self.run.id


def shown_runs(loaded: LoadedComparison) -> list[ShownRun]:
    """The runs in their order."""
    comparison = loaded.comparison
    return [
        ShownRun(place, run, queries.run_out(run), comparison.names[run.id], answers)
        for place, (run, answers) in enumerate(zip(loaded.runs, comparison.answers, strict=True))
    ]


def base_of(run_ids: Sequence[str], wanted: str) -> str | None:
    """The base run: the one asked for; of many runs else the first; None for all pairs."""
    if wanted in run_ids:
        return wanted
    return run_ids[0] if len(run_ids) > MOST_ALL_PAIRS else None


# The pair in focus ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Focus:
    """Two runs of the comparison with all that is said of them, and of their recipes (None for repeats of one)."""

    pair: Pair
    a: ShownRun
    b: ShownRun
    recipe: Recipe | None
    groups: list[tuple[int, Group]]  # the groups of the two, each with a number on the page
    comparison: Comparison

    @property
    def places(self) -> tuple[int, int]:
        return self.a.place, self.b.place

    @property
    def recipes_title(self) -> str:
        if self.recipe:
            return _("Two recipes: the noise over seeds")
        return _("One recipe: the noise over seeds")

    @property
    def recipe_difference(self) -> str:
        """A sentence with the difference of the recipes; empty where there is no interval."""
        recipe = self.recipe
        if recipe is None or recipe.interval is None or recipe.p_value_adjusted is None:
            return ""
        low, high = recipe.interval
        return _("Difference {difference} points, interval {low} to {high}, {p} ({method}).").format(
            difference=points(recipe.difference),
            low=points(low),
            high=points(high),
            p=p_text(recipe.p_value_adjusted),
            method=recipe.method,
        )

    @property
    def equivalence(self) -> str:
        """The test that the difference is negligible; empty where the verdict is another."""
        p = self.pair.equivalence_p_value
        if self.pair.verdict != "negligible" or p is None:
            return ""
        return equivalence_text(p, self.comparison.margin)

    @property
    def is_corrected(self) -> bool:
        """Whether p-values are corrected for several pairs."""
        return self.comparison.num_tested > 1

    @property
    def winner(self) -> ShownRun | None:
        return {"a_better": self.a, "b_better": self.b}.get(self.pair.verdict)

    @cached_property
    def forest(self) -> ResponsiveDrawing | None:
        """The pair and, where seeds give one, the recipes, around zero with the margin; None without an interval."""
        pair, recipe, details = self.pair, self.recipe, _details(self.a, self.b, self.recipe)
        rows = []
        if pair.interval is not None and pair.difference is not None:
            title = _("These two nets")
            rows.append(_forest_row(title, details[0], pair.difference, pair.interval, pair.verdict, self.places))
        if recipe is not None and recipe.interval is not None and recipe.difference is not None:
            title = _("The two recipes")
            rows.append(_forest_row(title, details[1], recipe.difference, recipe.interval, recipe.verdict, self.places))
        if not rows:
            return None
        margin = self.comparison.margin * 100
        return forest_plot(rows, margin=margin, left=pair.b_name, right=pair.a_name, level=self.comparison.level)

    @cached_property
    def seeds(self) -> ResponsiveDrawing | None:
        """Seeds of each of the two groups that has at least two."""
        rows = [
            SeedRow(
                place,
                group.name,
                [100 * value for value in group.accuracies],
                100 * group.mean,
                100 * group.interval[0],
                100 * group.interval[1],
            )
            for place, group in self.groups
            if group.mean is not None and group.interval is not None
        ]
        return seeds_chart(rows, caption=_seeds_caption([g for _i, g in self.groups])) if rows else None

    @property
    def spread(self) -> str:
        """How much the seeds move each recipe."""
        words = _("{points} points for {name}")
        known = [(g.standard_deviation, g.name) for _i, g in self.groups if g.standard_deviation is not None]
        parts = [words.format(points=f"{100 * deviation:.1f}", name=name) for deviation, name in known]
        return _("The standard deviation over seeds is {parts}.").format(parts=_(" and ").join(parts)) if parts else ""

    @property
    def when(self) -> str:
        """ "after epoch 5, on the 10,000 test images of mnist, pixels permuted" """
        a, b = self.a, self.b
        if a.epoch is None or b.epoch is None:
            return _("before the first epoch")
        words = (
            _("after epoch {n}").format(n=a.epoch)
            if a.epoch == b.epoch
            else _("after epochs {a} and {b}").format(a=a.epoch, b=b.epoch)
        )
        if a.run.test_fingerprint != b.run.test_fingerprint:
            return words
        words = _("{when}, on the {n} test images of {dataset}").format(
            when=words, n=f"{a.run.num_test or 0:,}", dataset=a.run.dataset
        )
        both = a.run.config.get("permute_pixels") and b.run.config.get("permute_pixels")
        return _("{words}, pixels permuted").format(words=words) if both else words


def pair_in_focus(comparison: Comparison, shown: Sequence[ShownRun], wanted: str) -> Focus:
    """The pair "ID.ID", in either order; the first one where there is no such pair."""
    ids, by_id = set(wanted.split(".")), {one.run.id: one for one in shown}
    pair = next((pair for pair in comparison.pairs if {pair.a, pair.b} == ids), comparison.pairs[0])
    a, b = replace(by_id[pair.a], name=pair.a_name), replace(by_id[pair.b], name=pair.b_name)
    in_focus = {a.run.group, b.run.group}
    places = {one.run.group: one.place for one in reversed(shown)}
    groups = [(places[group.group], group) for group in comparison.groups if group.group in in_focus]
    found = next((recipe for recipe in comparison.recipes if {recipe.a, recipe.b} == in_focus), None)
    recipe = turned(found, a.run.group) if found else None
    named = {recipe.a: recipe.a_name, recipe.b: recipe.b_name} if recipe else {}
    groups = [(place, replace(one, name=named.get(one.group, one.name))) for place, one in groups]
    return Focus(pair, a, b, recipe, groups, comparison)


_OTHER_SIDE: dict[Verdict, Verdict] = {"a_better": "b_better", "b_better": "a_better"}


def turned(recipe: Recipe, a: str) -> Recipe:
    """The recipe with group ``a`` as its first side."""
    if recipe.a == a:
        return recipe
    return replace(
        recipe,
        a=recipe.b,
        b=recipe.a,
        a_name=recipe.b_name,
        b_name=recipe.a_name,
        n_a=recipe.n_b,
        n_b=recipe.n_a,
        difference=None if recipe.difference is None else -recipe.difference,
        interval=None if recipe.interval is None else (-recipe.interval[1], -recipe.interval[0]),
        verdict=None if recipe.verdict is None else _OTHER_SIDE.get(recipe.verdict, recipe.verdict),
    )


def _forest_row(
    title: str,
    detail: str,
    difference: float,
    interval: tuple[float, float],
    verdict: str | None,
    places: tuple[int, int],
) -> ForestRow:
    favours = {"a_better": places[0], "b_better": places[1]}.get(verdict or "")
    return ForestRow(title, detail, difference * 100, interval[0] * 100, interval[1] * 100, favours)


def _epochs_words(epoch: int | None) -> str:
    return ngettext("after {n} epoch", "after {n} epochs", epoch or 0).format(n=f"{epoch or 0:,}")


def _details(a: ShownRun, b: ShownRun, recipe: Recipe | None) -> tuple[str, str]:
    """The second lines of the forest plot."""
    seeds = (
        _("seed {seed}").format(seed=a.run.seed)
        if a.run.seed == b.run.seed
        else _("seeds {a} and {b}").format(a=a.run.seed, b=b.run.seed)
    )
    first = f"{seeds} {_epochs_words(a.epoch)}" if a.epoch == b.epoch else seeds
    first = _("{what}, paired").format(what=first)
    return first, seeds_text(recipe.n_a, recipe.n_b) if recipe else ""


def _seeds_caption(groups: Sequence[Group]) -> str:
    epochs = {group.epoch for group in groups if group.epoch is not None}
    if len(epochs) == 1:
        return _("test accuracy {when}, %").format(when=_epochs_words(epochs.pop()))
    return _("test accuracy, %")


# All pairs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairTable:
    """Every pair with its difference drawn on one scale; None where a pair can't be compared."""

    rows: list[tuple[Pair, Drawing | None]]
    head: Drawing


def pair_table(comparison: Comparison, places: Mapping[str, int]) -> PairTable:
    """The pairs in their order; ``places`` are the runs' numbers on the page."""
    scale = DifferenceStrips.around(
        [(100 * pair.interval[0], 100 * pair.interval[1]) for pair in comparison.pairs if pair.interval],
        100 * comparison.margin,
    )

    def strip(pair: Pair) -> Drawing | None:
        if pair.interval is None or pair.difference is None:
            return None
        favours = {"a_better": places[pair.a], "b_better": places[pair.b]}.get(pair.verdict)
        return scale.row(100 * pair.difference, (100 * pair.interval[0], 100 * pair.interval[1]), favours)

    return PairTable([(pair, strip(pair)) for pair in comparison.pairs], scale.head())


# Configuration -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfigRow:
    """A field with the value of each run; ``differs`` marks those other than the base's, and those not recorded."""

    field: str
    title: str
    values: list[str]
    differs: list[bool]
    is_different: bool

    @property
    def difference_words(self) -> str:
        return _("{field} differs: {values}").format(field=self.field, values=", ".join(self.values))


def config_rows(shown: Sequence[ShownRun], comparison: Comparison, base: str | None) -> list[ConfigRow]:
    """Every field that applies to some run, in the order of ``RunConfig``."""
    reference = next((one.place for one in shown if one.run.id == base), len(shown) - 1 if len(shown) == 2 else 0)
    differences = {one.field: one for one in comparison.config_differences}
    rows = []
    for name, info in FIELDS.items():
        if name in differences:
            rows.append(_differing(differences[name], shown, reference))
        elif (value := shown[0].run.config.get(name)) is not None:
            words = [_value(name, value, one.run.model) for one in shown]
            rows.append(ConfigRow(name, _(info.title or name), words, [False] * len(shown), False))
    return rows


def _differing(difference: ConfigDifference, shown: Sequence[ShownRun], reference: int) -> ConfigRow:
    known, first = difference.is_known, difference.values[reference]
    values = [
        _value(difference.field, value, one.run.model) if is_known else _("not recorded")
        for value, is_known, one in zip(difference.values, known, shown, strict=True)
    ]
    differs = [
        not is_known or not known[reference] or value != first
        for value, is_known in zip(difference.values, known, strict=True)
    ]
    return ConfigRow(difference.field, difference.title, values, differs, True)


def _value(field: str, value: Any, model: str) -> str:
    if value is None:
        return "–"
    if field == "width":
        return f"{value} {_(MODELS[model].width_unit)}"
    return value_words(value)
