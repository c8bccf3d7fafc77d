"""What a comparison means, in words: the rules of a verdict, in their order, and its sentences.

The numbers come from ``app.statistics``, ``app.compare.comparison`` puts both together. Accuracies and differences come in as
fractions and leave as points or per cent. Rules and copy follow the verdict table of the product's design.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from app.words import level_text, p_text, plain_points, points_at_most, rounded_percent, short_points
from trainer.i18n import _, ngettext

Verdict = Literal["a_better", "b_better", "negligible", "inconclusive", "not_comparable"]
DEFAULT_MARGIN = 0.005
ALPHA = 0.05


# Rules ---------------------------------------------------------------------------------------------------------------


def judge(difference: float, low: float, high: float, p_adjusted: float, margin: float) -> Verdict:
    """The verdict on two sides that can be compared: inside the margin, different, or open, in this order."""
    if -margin <= low and high <= margin:
        return "negligible"
    if p_adjusted <= ALPHA and (low > 0 or high < 0):
        return "a_better" if difference > 0 else "b_better"
    return "inconclusive"


@dataclass(frozen=True)
class Text:
    """The words of one verdict; ``notes`` are sentences about the method."""

    heading: str
    explanation: str = ""
    says: str = ""
    says_not: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PairFacts:
    """All that the sentences on two nets need."""

    a: str
    b: str
    num_images: int
    a_correct: int
    b_correct: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    num_pairs: int
    level: float
    margin: float
    fewest_images: int  # below this number the margin can't be shown
    identical: bool
    same_recipe: bool

    @property
    def disagreements(self) -> int:
        return self.only_a + self.only_b

    @property
    def farthest(self) -> float:
        return max(abs(self.low), abs(self.high))


def pair_verdict(facts: PairFacts) -> tuple[Verdict, Text]:
    """The verdict on two nets over the same images, with its words."""
    if facts.identical:
        verdict: Verdict = "negligible"
    else:
        verdict = judge(facts.difference, facts.low, facts.high, facts.p_adjusted, facts.margin)
    return verdict, Text(
        heading=_pair_heading(facts, verdict),
        explanation=_counts(facts),
        says=_pair_says(facts, verdict),
        says_not=_pair_says_not(facts, verdict),
        notes=_pair_notes(facts),
    )


def _pair_heading(facts: PairFacts, verdict: Verdict) -> str:
    if facts.identical:
        return _("Identical answers.")
    if verdict == "negligible":
        return too_small(facts.farthest, real=facts.p_adjusted <= ALPHA)
    if verdict == "inconclusive":
        return too_close(facts.a, facts.b, facts.difference)
    winner, loser = (facts.a, facts.b) if verdict == "a_better" else (facts.b, facts.a)
    return better(winner, loser, facts.difference, nearest=_nearest(facts.low, facts.high), margin=facts.margin)


def _nearest(low: float, high: float) -> float:
    """The limit next to zero, of an interval that excludes it."""
    return min(abs(low), abs(high))


def too_small(farthest: float, *, real: bool) -> str:
    text = _("Real, but too small to matter: at most {points} points apart.") if real else _(
        "Too small to matter: at most {points} points apart."
    )  # fmt: skip
    return text.format(points=points_at_most(farthest))


def too_close(a: str, b: str, difference: float) -> str:
    if difference == 0:
        return _("Too close to call: {a} and {b} got equally many right.").format(a=a, b=b)
    return _("Too close to call: {a} and {b} are {points} points apart.").format(
        a=a, b=b, points=short_points(difference)
    )


def better(winner: str, loser: str, difference: float, *, nearest: float, margin: float) -> str:
    text = _("{winner} is better than {loser} by {points} points.")
    if nearest < margin:
        text = _("{winner} is better than {loser} by {points} points, perhaps by less than the margin.")
    return text.format(winner=winner, loser=loser, points=short_points(difference))


def _counts(facts: PairFacts) -> str:
    first = ngettext(
        "{a} got {a_correct} of {n} test image right, {b} {b_correct}.",
        "{a} got {a_correct} of {n} test images right, {b} {b_correct}.",
        facts.num_images,
    ).format(
        a=facts.a,
        b=facts.b,
        n=f"{facts.num_images:,}",
        a_correct=f"{facts.a_correct:,}",
        b_correct=f"{facts.b_correct:,}",
    )
    if facts.disagreements == 0:
        return first + " " + _("Neither is right where the other is wrong.")
    second = ngettext(
        "They disagree on {n} image: {a} is right on {only_a} of these, {b} on {only_b}.",
        "They disagree on {n} images: {a} is right on {only_a} of these, {b} on {only_b}.",
        facts.disagreements,
    ).format(n=f"{facts.disagreements:,}", a=facts.a, b=facts.b, only_a=f"{facts.only_a:,}", only_b=f"{facts.only_b:,}")
    return first + " " + second


def evidence(disagreements: int) -> str:
    """Which images carry the test."""
    if disagreements == 0:
        return _("No image tells the runs apart.")
    return ngettext(
        "Only the {n} image on which the runs disagree can tell them apart.",
        "Only the {n} images on which the runs disagree can tell them apart.",
        disagreements,
    ).format(n=f"{disagreements:,}")


def _pair_says(facts: PairFacts, verdict: Verdict) -> str:
    if facts.identical:
        return ngettext(
            "Both nets gave the same answer to the {n} test image.",
            "Both nets gave the same answer to each of the {n} test images.",
            facts.num_images,
        ).format(n=f"{facts.num_images:,}")
    if verdict in ("negligible", "inconclusive"):
        return _("On images like these the two nets are at most {points} points apart, either way.").format(
            points=points_at_most(facts.farthest)
        )
    winner = facts.a if verdict == "a_better" else facts.b
    return (
        _("Of these two trained nets {winner} is better on images like these.").format(winner=winner)
        + " " + _chance(facts)
    )  # fmt: skip


def _chance(facts: PairFacts) -> str:
    more, fewer = max(facts.only_a, facts.only_b), min(facts.only_a, facts.only_b)
    if facts.p_value < 1e-6:
        text = _("If both were equally good, a split as uneven as {more} to {fewer} would practically never happen.")
        return text.format(more=f"{more:,}", fewer=f"{fewer:,}")
    text = _("If both were equally good, a split as uneven as {more} to {fewer} would happen once in {times} times.")
    times = float(f"{1 / facts.p_value:.2g}")
    return text.format(more=f"{more:,}", fewer=f"{fewer:,}", times=f"{times:,.0f}")


def _pair_says_not(facts: PairFacts, verdict: Verdict) -> str:
    if facts.same_recipe:
        return _("That one recipe is better. Both runs are repeats of one recipe; only their seeds differ.")
    if facts.identical:
        return _("That the nets are the same: on other images they may differ.")
    if verdict in ("a_better", "b_better"):
        winner, loser = (facts.a, facts.b) if verdict == "a_better" else (facts.b, facts.a)
        return _(
            "That every net trained like {winner} beats every net trained like {loser}. "
            "That is a question about recipes, and only more seeds answer it."
        ).format(winner=winner, loser=loser)
    if facts.disagreements == 0:
        return _("That the nets are the same: their wrong answers differ.")
    return ngettext(
        "That the nets are the same. They disagree on {n} image.",
        "That the nets are the same. They disagree on {n} images: about equally good, by different mistakes.",
        facts.disagreements,
    ).format(n=f"{facts.disagreements:,}")


def _pair_notes(facts: PairFacts) -> list[str]:
    notes = []
    excludes, refused = facts.low > 0 or facts.high < 0, facts.p_adjusted <= ALPHA
    if excludes and not refused:
        notes.append(
            ngettext(
                "The interval excludes zero, the exact test does not, {p}.",
                "The interval excludes zero, the exact test for {m} pairs does not, {p}.",
                facts.num_pairs,
            ).format(m=facts.num_pairs, p=p_text(facts.p_adjusted))
        )
    if refused and not excludes:
        notes.append(
            ngettext(
                "The exact test excludes zero, {p}, the interval does not.",
                "The exact test for {m} pairs excludes zero, {p}, the interval does not.",
                facts.num_pairs,
            ).format(m=facts.num_pairs, p=p_text(facts.p_adjusted))
        )
    if facts.num_images < facts.fewest_images and not facts.identical:
        notes.append(
            ngettext(
                "With {n} test image no result can show that a difference is below {margin} points; that takes {needed}.",
                "With {n} test images no result can show that a difference is below {margin} points; that takes {needed}.",
                facts.num_images,
            ).format(n=f"{facts.num_images:,}", margin=plain_points(facts.margin), needed=f"{facts.fewest_images:,}")
        )
    return notes


def other_images(b: str) -> Text:
    """Rule 1: the two runs answered other test images."""
    return Text(
        heading=_("Not comparable: {b} was tested on other images.").format(b=b),
        explanation=_("A difference would mix the nets with their test images. Train both on the same data set."),
    )


def no_epoch(name: str) -> Text:
    """A run that has no answers yet."""
    return Text(
        heading=_("Not comparable yet: {name} has no finished epoch.").format(name=name),
        explanation=_("There is nothing to compare before the first epoch is complete."),
    )


def family_note(num_pairs: int, level: float) -> str:
    """What the number of pairs shown does to intervals and p."""
    if num_pairs <= 1:
        return _("One pair, nothing to correct for.")
    return _(
        "{m} pairs are shown, so each interval has the level {level}, and p is corrected (Holm): "
        "the chance of one false alarm among all of them stays below 5 %."
    ).format(m=num_pairs, level=level_text(level))


def best_of_note(name: str, num_runs: int, accuracy: float, optimism: float) -> str:
    """What choosing the best of several runs by the images that they are shown on does to its accuracy."""
    first = _(
        "{name} is the best of {n} runs on the very images that they were chosen by, so its {accuracy} is optimistic"
    )
    if short_points(max(optimism, 0)) == "0.00" or optimism <= 0:
        last = _("; over random halves of the images no drop shows.")
    else:
        last = _(
            ", by about {points} points (chosen on one half of the images, read on the other; 1,000 random halves)."
        )
    return (first + last).format(
        name=name, n=f"{num_runs:,}", accuracy=rounded_percent(accuracy), points=short_points(max(optimism, 0))
    )


def equivalence_text(p: float, margin: float) -> str:
    """The test behind "too small to matter"."""
    return _("Equivalence within ±{margin} points (two one-sided tests): {p}").format(
        margin=plain_points(margin), p=p_text(p)
    )


def margin_note(margin: float) -> str | None:
    """Said only where the margin is not the default."""
    if math.isclose(margin, DEFAULT_MARGIN):
        return None
    return _("Margin chosen by you: {margin} points, default {default}.").format(
        margin=plain_points(margin), default=plain_points(DEFAULT_MARGIN)
    )


# Two recipes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeFacts:
    """All that the sentences on two recipes need."""

    a: str
    b: str
    n_a: int
    n_b: int
    mean_a: float
    mean_b: float
    epoch_a: int | None  # None where the runs of a group stand at different epochs
    epoch_b: int | None
    summary_a: str  # "4 of 5 finished, 1 failed." or "" where all finished
    summary_b: str
    paired: bool
    difference: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    margin: float
    from_images: bool
    further_seeds: int | None
    looks: int
    false_alarm_rate: float


def recipe_verdict(facts: RecipeFacts) -> tuple[Verdict, Text]:
    """The verdict on two recipes that have at least two seeds each, with its words."""
    verdict = judge(facts.difference, facts.low, facts.high, facts.p_adjusted, facts.margin)
    return verdict, Text(
        heading=_recipe_heading(facts, verdict),
        explanation=_recipe_explanation(facts),
        says=_recipe_says(facts, verdict),
        says_not=_("That each net of one recipe beats each net of the other: a single net depends on its seed.")
        if verdict in ("a_better", "b_better") else _("That the recipes are equal: a smaller difference may be there."),
        notes=_recipe_notes(facts, verdict),
    )  # fmt: skip


def _recipe_heading(facts: RecipeFacts, verdict: Verdict) -> str:
    if verdict == "negligible":
        return too_small(max(abs(facts.low), abs(facts.high)), real=facts.p_adjusted <= ALPHA)
    if verdict == "inconclusive":
        if facts.difference == 0:
            return _("Too close to call: over seeds {a} and {b} are level.").format(a=facts.a, b=facts.b)
        text = _("Too close to call: over seeds {a} and {b} are {points} points apart.")
        return text.format(a=facts.a, b=facts.b, points=short_points(facts.difference))
    winner = facts.a if verdict == "a_better" else facts.b
    text = _("{winner} is the better recipe by {points} points.")
    if _nearest(facts.low, facts.high) < facts.margin:
        text = _("{winner} is the better recipe by {points} points, perhaps by less than the margin.")
    return text.format(winner=winner, points=short_points(facts.difference))


def seeds_text(n_a: int, n_b: int) -> str:
    if n_a == n_b:
        return ngettext("{n} seed each", "{n} seeds each", n_a).format(n=n_a)
    return _("{n_a} and {n_b} seeds").format(n_a=n_a, n_b=n_b)


def _recipe_explanation(facts: RecipeFacts) -> str:
    sentences = [seeds_text(facts.n_a, facts.n_b) + _when(facts.epoch_a, facts.epoch_b)]
    sentences.append(
        _("{a} got {mean_a} on average, {b} {mean_b}.").format(
            a=facts.a, mean_a=rounded_percent(facts.mean_a), b=facts.b, mean_b=rounded_percent(facts.mean_b)
        )
    )
    sentences.append(
        _("The seeds are the same, so they are compared in pairs.") if facts.paired
        else _("The seeds are not the same, so the averages are compared (Welch).")
    )  # fmt: skip
    for name, summary in ((facts.a, facts.summary_a), (facts.b, facts.summary_b)):
        if summary:
            sentences.append(f"{name}: {summary}")
    return " ".join(sentences)


def _when(epoch_a: int | None, epoch_b: int | None) -> str:
    if epoch_a is None or epoch_b is None:
        return _(", each run at its own epoch.")
    if epoch_a == epoch_b:
        return ngettext(", after {n} epoch.", ", after {n} epochs.", epoch_a).format(n=f"{epoch_a:,}")
    return _(", after {a} and {b} epochs.").format(a=f"{epoch_a:,}", b=f"{epoch_b:,}")


def _recipe_says(facts: RecipeFacts, verdict: Verdict) -> str:
    if verdict in ("a_better", "b_better"):
        winner = facts.a if verdict == "a_better" else facts.b
        return _("Trained again with other seeds, {winner} leads on average by {low} to {high} points.").format(
            winner=winner,
            low=short_points(_nearest(facts.low, facts.high)),
            high=short_points(max(abs(facts.low), abs(facts.high))),
        )
    return _("Trained again with other seeds, the recipes are on average at most {points} points apart.").format(
        points=points_at_most(max(abs(facts.low), abs(facts.high)))
    )


def _recipe_notes(facts: RecipeFacts, verdict: Verdict) -> list[str]:
    notes = []
    if facts.from_images:
        notes.append(
            _("All seeds share one test set. Other images would move them together, so the interval is wider.")
        )
    if verdict == "inconclusive":
        notes.append(more_seeds(facts.further_seeds, facts.margin))
    if facts.looks > 1:
        notes.append(
            _("Seeds were added after a look: at {n} looks the chance of a false alarm is {rate} %, not 5 %.").format(
                n=facts.looks, rate=f"{facts.false_alarm_rate * 100:.0f}"
            )
        )
    return notes


def more_seeds(further: int | None, margin: float) -> str:
    """What the power calculation asks for."""
    if further is None:
        return _("More seeds alone can't find a difference of {margin} points: it takes more test images too.").format(
            margin=plain_points(margin)
        )
    if further == 0:
        return _("There are seeds enough to find a difference of {margin} points 4 times in 5.").format(
            margin=plain_points(margin)
        )
    return ngettext(
        "{n} more seed of each finds a difference of {margin} points 4 times in 5.",
        "{n} more seeds of each find a difference of {margin} points 4 times in 5.",
        further,
    ).format(n=f"{further:,}", margin=plain_points(margin))


def too_few_seeds(n_a: int, n_b: int, summaries: list[str]) -> Text:
    """No verdict below two seeds each."""
    heading = _("One seed each: no spread to show.") if n_a == n_b == 1 else _("Too few seeds: two of each are needed.")
    first = _("A mean and an interval appear from two seeds on. Five make them useful.")
    return Text(heading=heading, explanation=" ".join([first, *summaries]))


def group_summary(num_seeds: int, num_used: int, counts: dict[str, int], other_epoch: int) -> str:
    """ "4 of 5 finished, 1 failed." or "" where all seeds are used."""
    if num_used == num_seeds:
        return ""
    finished = num_used + other_epoch
    parts = [_("{n} of {total} finished").format(n=finished, total=num_seeds)]
    words = {
        "failed": _("{n} failed"), "cancelled": _("{n} cancelled"), "running": _("{n} running"),
        "queued": _("{n} queued"),
    }  # fmt: skip
    parts += [words[status].format(n=n) for status, n in counts.items() if n and status in words]
    if other_epoch:
        parts.append(_("{n} left out, at another epoch").format(n=other_epoch))
    return ", ".join(parts) + "."
