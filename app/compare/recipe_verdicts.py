"""The text of a verdict on two recipes, whose runs differ in their seeds. The rules are those of ``app.compare.verdicts``."""

from __future__ import annotations

from collections.abc import Sequence

from app.compare.shapes import ALPHA, Recipe, RecipeTest, Verdict
from app.compare.verdicts import Text, judge, too_small
from app.statistics import false_alarm_rate
from app.words import plain_points, points_at_most, rounded_percent, short_points, statuses_in_words
from trainer.i18n import _, ngettext


def recipe_verdict(test: RecipeTest) -> tuple[Verdict, Text]:
    """The verdict on two recipes that have at least two seeds each, with its text."""
    verdict = judge(test.difference, test.low, test.high, test.p_value_adjusted, test.margin)
    return verdict, Text(
        heading=_heading(test, verdict),
        explanation=_explanation(test),
        says=_says(test, verdict),
        says_not=_says_not(verdict),
        notes=_notes(test, verdict),
    )


def _heading(test: RecipeTest, verdict: Verdict) -> str:
    if verdict == "negligible":
        return too_small(test.farthest, real=test.p_value_adjusted <= ALPHA)
    if verdict == "inconclusive":
        if test.difference == 0:
            return _("Too close to call: over seeds {a} and {b} are tied.").format(a=test.a_name, b=test.b_name)
        text = _("Too close to call: over seeds {a} and {b} are {points} points apart.")
        return text.format(a=test.a_name, b=test.b_name, points=short_points(test.difference))
    winner = test.a_name if verdict == "a_better" else test.b_name
    text = _("{winner} is the better recipe by {points} points.")
    if test.nearest < test.margin:
        text = _("{winner} is the better recipe by {points} points, perhaps by less than the margin.")
    return text.format(winner=winner, points=short_points(test.difference))


def _says_not(verdict: Verdict) -> str:
    if verdict in ("a_better", "b_better"):
        return _("That each net of one recipe beats each net of the other: a single net depends on its seed.")
    return _("That the recipes are equal: there may be a smaller difference.")


def seeds_text(n_a: int, n_b: int) -> str:
    if n_a == n_b:
        return ngettext("{n} seed each", "{n} seeds each", n_a).format(n=n_a)
    return _("{n_a} and {n_b} seeds").format(n_a=n_a, n_b=n_b)


def _explanation(test: RecipeTest) -> str:
    sentences = [seeds_text(len(test.a.runs), len(test.b.runs)) + _when(test.a.epoch, test.b.epoch)]
    sentences.append(
        _("{a} got {mean_a} on average, {b} {mean_b}.").format(
            a=test.a_name,
            mean_a=rounded_percent(test.a.mean or 0.0),
            b=test.b_name,
            mean_b=rounded_percent(test.b.mean or 0.0),
        )
    )
    if test.is_paired:
        sentences.append(_("The seeds are the same, so they are compared in pairs."))
    else:
        sentences.append(_("The seeds are not the same, so the averages are compared (Welch)."))
    for name, summary in ((test.a_name, test.a.summary), (test.b_name, test.b.summary)):
        if summary:
            sentences.append(f"{name}: {summary}")
    return " ".join(sentences)


def _when(epoch_a: int | None, epoch_b: int | None) -> str:
    if epoch_a is None or epoch_b is None:
        return _(", each run at its own epoch.")
    if epoch_a == epoch_b:
        return ngettext(", after {n} epoch.", ", after {n} epochs.", epoch_a).format(n=f"{epoch_a:,}")
    return _(", after {a} and {b} epochs.").format(a=f"{epoch_a:,}", b=f"{epoch_b:,}")


def _says(test: RecipeTest, verdict: Verdict) -> str:
    if verdict in ("a_better", "b_better"):
        winner = test.a_name if verdict == "a_better" else test.b_name
        return _("Trained again with other seeds, {winner} leads on average by {low} to {high} points.").format(
            winner=winner,
            low=short_points(test.nearest),
            high=short_points(test.farthest),
        )
    return _("Trained again with other seeds, the recipes are on average at most {points} points apart.").format(
        points=points_at_most(test.farthest)
    )


def _notes(test: RecipeTest, verdict: Verdict) -> list[str]:
    notes = []
    if test.from_images:
        notes.append(
            _("All seeds share one test set. Other images would move them together, so the interval is wider.")
        )
    if verdict == "inconclusive":
        notes.append(_more_seeds(test.further_seeds, test.margin))
    if test.looks > 1:
        notes.append(
            _(
                "Seeds were added after a look at the result: with {n} looks the chance of a false alarm is {rate} %, not 5 %."
            ).format(n=test.looks, rate=f"{false_alarm_rate(test.looks) * 100:.0f}")
        )
    return notes


def _more_seeds(further: int | None, margin: float) -> str:
    """How many more seeds the power calculation asks for."""
    if further is None:
        return _("More seeds alone can't find a difference of {margin} points: it takes more test images too.").format(
            margin=plain_points(margin)
        )
    if further == 0:
        return _("There are enough seeds to find a difference of {margin} points 4 times in 5.").format(
            margin=plain_points(margin)
        )
    return ngettext(
        "{n} more seed of each finds a difference of {margin} points 4 times in 5.",
        "{n} more seeds of each find a difference of {margin} points 4 times in 5.",
        further,
    ).format(n=f"{further:,}", margin=plain_points(margin))


def too_few_seeds(n_a: int, n_b: int, summaries: list[str]) -> Text:
    """Two recipes without a test: it takes two seeds of each."""
    heading = _("One seed each: no spread to show.") if n_a == n_b == 1 else _("Too few seeds: two of each are needed.")
    first = _("A mean and an interval need at least two seeds; five make them useful.")
    return Text(heading=heading, explanation=" ".join([first, *summaries]))


def group_summary(num_used: int, num_other_epoch: int, unfinished: Sequence[str]) -> str:
    """How many seeds of a recipe count: ``4 of 5 finished, 1 failed.``, or "" where all do.

    ``unfinished`` has the statuses of the seeds without a finished run. A seed whose predictions can't be read counts
    as not finished, whatever its status.
    """
    if not num_other_epoch and not unfinished:
        return ""
    finished = ["finished"] * (num_used + num_other_epoch)
    words = statuses_in_words([*finished, *(status if status != "finished" else "" for status in unfinished)])
    if num_other_epoch:
        words += ", " + _("{n} left out, at another epoch").format(n=num_other_epoch)
    return words + "."


# In the text of a pair -----------------------------------------------------------------------------------------------


def what_seeds_say(recipe: Recipe, winner: str | None) -> str:
    """A sentence on the recipes of two nets. ``winner`` is the group of the better net, where one is better."""
    if recipe.verdict is None:
        if recipe.n_a == recipe.n_b == 1:
            return _("One seed each says nothing about the recipes.")
        return _("Too few seeds say nothing about the recipes.")
    seeds = seeds_text(recipe.n_a, recipe.n_b)
    if recipe.interval is None or recipe.verdict not in ("a_better", "b_better"):
        return _("With {seeds} the recipes are not distinguishable.").format(seeds=seeds)
    leader, name = (recipe.a, recipe.a_name) if recipe.verdict == "a_better" else (recipe.b, recipe.b_name)
    low, high = sorted(abs(limit) for limit in recipe.interval)
    text = _("With {seeds} the recipe {leader} leads by {low} to {high} points.")
    if leader == winner:
        text = _("Here they agree: with {seeds} the recipe {leader} leads by {low} to {high} points.")
    return text.format(seeds=seeds, leader=name, low=short_points(low), high=short_points(high))
