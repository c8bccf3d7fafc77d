"""Verdicts: the rules that choose one, in their order, and the sentences about two nets.

Sentences about two recipes are in ``app.compare.recipe_verdicts``; the numbers come from ``app.compare.pairs``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from app.compare.shapes import ALPHA, DEFAULT_MARGIN, PairTest, Verdict
from app.words import level_text, p_text, plain_points, points_at_most, short_points
from trainer.i18n import _, ngettext

# Rules ---------------------------------------------------------------------------------------------------------------


def judge(difference: float, low: float, high: float, p_adjusted: float, margin: float) -> Verdict:
    """The verdict on two sides that can be compared. The first rule that applies decides."""
    if -margin <= low and high <= margin:
        return "negligible"
    if p_adjusted <= ALPHA and (low > 0 or high < 0):
        return "a_better" if difference > 0 else "b_better"
    return "inconclusive"


# Text ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """The text of a verdict; ``notes`` are sentences about the method."""

    heading: str
    explanation: str = ""
    says: str = ""
    says_not: str = ""
    notes: list[str] = field(default_factory=list)


def pair_verdict(test: PairTest) -> tuple[Verdict, Text]:
    """The verdict on two nets that were tested on the same images, with its text."""
    if test.is_identical:
        verdict: Verdict = "negligible"
    else:
        verdict = judge(test.difference, test.low, test.high, test.p_value_adjusted, test.family.margin)
    return verdict, Text(
        heading=_pair_heading(test, verdict),
        explanation=_counts(test),
        says=_pair_says(test, verdict),
        says_not=_pair_says_not(test, verdict),
        notes=_pair_notes(test),
    )


def _pair_heading(test: PairTest, verdict: Verdict) -> str:
    if test.is_identical:
        return _("Identical predictions.")
    if verdict == "negligible":
        return too_small(test.farthest, real=test.p_value_adjusted <= ALPHA)
    if verdict == "inconclusive":
        return _too_close(test.a_name, test.b_name, test.difference)
    winner, loser = _winner_and_loser(test, verdict)
    return _better(winner, loser, test.difference, nearest=test.nearest, margin=test.family.margin)


def _winner_and_loser(test: PairTest, verdict: Verdict) -> tuple[str, str]:
    return (test.a_name, test.b_name) if verdict == "a_better" else (test.b_name, test.a_name)


def too_small(farthest: float, *, real: bool) -> str:
    text = _("Too small to matter: at most {points} points apart.")
    if real:
        text = _("Real, but too small to matter: at most {points} points apart.")
    return text.format(points=points_at_most(farthest))


def _too_close(a: str, b: str, difference: float) -> str:
    if difference == 0:
        return _("Too close to call: {a} and {b} got equally many right.").format(a=a, b=b)
    return _("Too close to call: {a} and {b} are {points} points apart.").format(
        a=a, b=b, points=short_points(difference)
    )


def _better(winner: str, loser: str, difference: float, *, nearest: float, margin: float) -> str:
    text = _("{winner} is better than {loser} by {points} points.")
    if nearest < margin:
        text = _("{winner} is better than {loser} by {points} points, perhaps by less than the margin.")
    return text.format(winner=winner, loser=loser, points=short_points(difference))


def _counts(test: PairTest) -> str:
    first = ngettext(
        "{a} got {a_correct} of {n} test image right, {b} {b_correct}.",
        "{a} got {a_correct} of {n} test images right, {b} {b_correct}.",
        test.num_images,
    ).format(
        a=test.a_name,
        b=test.b_name,
        n=f"{test.num_images:,}",
        a_correct=f"{test.a_correct:,}",
        b_correct=f"{test.b_correct:,}",
    )
    if test.disagreements == 0:
        return first + " " + _("Neither is right where the other is wrong.")
    second = ngettext(
        "They disagree on {n} image: {a} is right on {only_a} of these, {b} on {only_b}.",
        "They disagree on {n} images: {a} is right on {only_a} of these, {b} on {only_b}.",
        test.disagreements,
    ).format(
        n=f"{test.disagreements:,}",
        a=test.a_name,
        b=test.b_name,
        only_a=f"{test.only_a_correct:,}",
        only_b=f"{test.only_b_correct:,}",
    )
    return first + " " + second


def evidence(disagreements: int) -> str:
    """A sentence about the images that the test depends on."""
    if disagreements == 0:
        return _("No image distinguishes the runs.")
    return ngettext(
        "Only the {n} image on which the runs disagree can distinguish them.",
        "Only the {n} images on which the runs disagree can distinguish them.",
        disagreements,
    ).format(n=f"{disagreements:,}")


def _pair_says(test: PairTest, verdict: Verdict) -> str:
    if test.is_identical:
        return ngettext(
            "Both nets made the same prediction for the {n} test image.",
            "Both nets made the same prediction for each of the {n} test images.",
            test.num_images,
        ).format(n=f"{test.num_images:,}")
    if verdict in ("negligible", "inconclusive"):
        return _("On images like these the two nets are at most {points} points apart, either way.").format(
            points=points_at_most(test.farthest)
        )
    winner, _loser = _winner_and_loser(test, verdict)
    first = _("Of these two trained nets {winner} is better on images like these.").format(winner=winner)
    return first + " " + _chance(test)


def _chance(test: PairTest) -> str:
    """A sentence about how likely a split this uneven would be if both were equally good."""
    more, fewer = max(test.only_a_correct, test.only_b_correct), min(test.only_a_correct, test.only_b_correct)
    if test.p_value < 1e-6:
        text = _("If both were equally good, a split as uneven as {more} to {fewer} would practically never happen.")
        return text.format(more=f"{more:,}", fewer=f"{fewer:,}")
    text = _("If both were equally good, a split as uneven as {more} to {fewer} would happen once in {times} times.")
    times = float(f"{1 / test.p_value:.2g}")
    return text.format(more=f"{more:,}", fewer=f"{fewer:,}", times=f"{times:,.0f}")


def _pair_says_not(test: PairTest, verdict: Verdict) -> str:
    if test.is_one_recipe:
        return _("That one recipe is better. Both runs are repeats of one recipe; only their seeds differ.")
    if test.is_identical:
        return _("That the nets are the same: on other images they may differ.")
    if verdict in ("a_better", "b_better"):
        winner, loser = _winner_and_loser(test, verdict)
        return _(
            "That every net trained like {winner} beats every net trained like {loser}. "
            "That is a question about recipes, and only more seeds answer it."
        ).format(winner=winner, loser=loser)
    if test.disagreements == 0:
        return _("That the nets are the same: their wrong predictions differ.")
    return ngettext(
        "That the nets are the same. They disagree on {n} image.",
        "That the nets are the same. They disagree on {n} images: about equally good, with different mistakes.",
        test.disagreements,
    ).format(n=f"{test.disagreements:,}")


def _pair_notes(test: PairTest) -> list[str]:
    notes = []
    excludes, refused = test.low > 0 or test.high < 0, test.p_value_adjusted <= ALPHA
    if excludes and not refused:
        notes.append(
            ngettext(
                "The interval excludes zero, the exact test does not, {p}.",
                "The interval excludes zero, the exact test for {m} pairs does not, {p}.",
                test.family.num_pairs,
            ).format(m=test.family.num_pairs, p=p_text(test.p_value_adjusted))
        )
    if refused and not excludes:
        notes.append(
            ngettext(
                "The exact test excludes zero, {p}, the interval does not.",
                "The exact test for {m} pairs excludes zero, {p}, the interval does not.",
                test.family.num_pairs,
            ).format(m=test.family.num_pairs, p=p_text(test.p_value_adjusted))
        )
    if test.num_images < test.family.fewest_images and not test.is_identical:
        notes.append(
            ngettext(
                "With {n} test image no result can show that a difference is below {margin} points; that takes {needed}.",
                "With {n} test images no result can show that a difference is below {margin} points; that takes {needed}.",
                test.num_images,
            ).format(
                n=f"{test.num_images:,}",
                margin=plain_points(test.family.margin),
                needed=f"{test.family.fewest_images:,}",
            )
        )
    return notes


# Without a test ------------------------------------------------------------------------------------------------------


def other_images(b: str) -> Text:
    """The text for two runs that were tested on different images."""
    return Text(
        heading=_("Not comparable: {b} was tested on other images.").format(b=b),
        explanation=_("A difference would mix the nets with their test images. Train both on the same data set."),
    )


def no_epoch(name: str) -> Text:
    """The text for a run without predictions."""
    return Text(
        heading=_("Not comparable yet: {name} has no finished epoch.").format(name=name),
        explanation=_("There is nothing to compare before the first epoch is complete."),
    )


# Notes on the method -------------------------------------------------------------------------------------------------


def family_note(num_pairs: int, level: float) -> str:
    """A note about how the number of pairs affects intervals and p-values."""
    if num_pairs <= 1:
        return _("One pair, nothing to correct for.")
    return _(
        "{m} pairs are shown, so each interval has the level {level}, and p is corrected (Holm): "
        "the chance of one false alarm among all of them stays below 5 %."
    ).format(m=num_pairs, level=level_text(level))


def equivalence_text(p: float, margin: float) -> str:
    """A note about the test behind "too small to matter"."""
    return _("Equivalence within ±{margin} points (two one-sided tests): {p}").format(
        margin=plain_points(margin), p=p_text(p)
    )


def margin_note(margin: float) -> str | None:
    """A note if the margin is not the default, else None."""
    if math.isclose(margin, DEFAULT_MARGIN):
        return None
    return _("Margin chosen by you: {margin} points, default {default}.").format(
        margin=plain_points(margin), default=plain_points(DEFAULT_MARGIN)
    )
