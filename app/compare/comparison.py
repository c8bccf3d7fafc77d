"""Several runs side by side: which is better, by how much, and is it real. Everything that ``GET /compare`` and its page show
of answers, seeds, configurations and budgets.

Pure: the caller loads the answers (``app.store.predictions``) and brings the values. Formulas are in ``app.statistics``, rules
and sentences in ``app.compare.verdicts``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app import statistics
from app.compare.verdicts import (
    ALPHA,
    DEFAULT_MARGIN,
    PairFacts,
    RecipeFacts,
    Text,
    Verdict,
    best_of_note,
    evidence,
    family_note,
    group_summary,
    margin_note,
    no_epoch,
    other_images,
    pair_verdict,
    recipe_verdict,
    seeds_text,
    too_few_seeds,
)
from app.runs.sweeps import without_seed
from app.schemas import AccuracyCost
from app.store.predictions import defect_of
from app.words import short_points
from trainer.config import FIELDS, MODELS
from trainer.i18n import _, ngettext

USEFUL_SEEDS = 5
_SMALLEST_MARGIN, _LARGEST_MARGIN = 1e-6, 0.5
_MOST_KAPPAS = 50  # pairs; each costs half a millisecond at 10,000 images
_FEWEST_TO_CHOOSE_FROM = 3
_NO_FACTOR = {"seed", "device", "deterministic"}  # what repeats and machines differ in


class CompareError(ValueError):
    """The question can't be answered as asked; the text is a sentence for people."""


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One run as the comparison needs it. The arrays are None before the first epoch."""

    id: str
    name: str
    config: Mapping[str, Any]  # every field of RunConfig
    group: str
    seed: int
    test_fingerprint: str
    epoch: int | None = None  # the epoch that the answers are of
    labels: NDArray[Any] | None = field(default=None, repr=False)  # [N] integers
    predicted: NDArray[Any] | None = field(default=None, repr=False)  # [N] integers
    calibration: statistics.CalibrationError | None = None  # of these answers
    reported_correct: int | None = None  # how many were right by the run's own log
    letter: str = ""  # as on the page; A, B, C ... by position where empty
    status: str = "finished"
    created_at: str = ""  # times are ISO 8601, so that text order is time order
    finished_at: str | None = None
    sweep: str | None = None  # the sweep that started it; a single run has none
    num_parameters: int | None = None
    epochs_done: int | None = None
    images_seen: int | None = None
    train_seconds: float | None = None

    @property
    def has_answers(self) -> bool:
        return self.labels is not None and self.predicted is not None

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Which images were answered right [N]; only where ``has_answers``."""
        assert self.has_answers
        return np.asarray(self.labels == self.predicted)

    @cached_property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def images_key(self) -> tuple[str, int]:
        """Equal for runs that answered the same test images."""
        assert self.labels is not None
        return self.test_fingerprint, len(self.labels)


class Kappa(BaseModel):
    """Cohen's kappa of two runs' answers: agreement beyond chance, 1 where all are equal, with its 95 % interval."""

    value: float
    interval: tuple[float, float]


class Pair(BaseModel):
    """Two trained nets over the same test images. Differences and intervals are fractions, a minus b."""

    a: str
    b: str
    a_name: str
    b_name: str
    num_images: int = 0
    a_correct: int = 0
    b_correct: int = 0
    both_correct: int = 0
    only_a_correct: int = 0
    only_b_correct: int = 0
    both_wrong: int = 0
    same_wrong_answer: int = 0
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    p_value_adjusted: float | None = None
    verdict: Verdict
    heading: str
    explanation: str
    evidence: str = ""
    says: str = ""
    says_not: str = ""
    notes: list[str] = []
    agreement: float | None = None  # part of the images to which both gave the same answer
    kappa: Kappa | None = None  # None also where more than 50 pairs are tested
    equivalence_p_value: float | None = None  # that they differ by the margin or more: two one-sided tests
    smallest_detectable_difference: float | None = None  # found 4 times in 5, given how often the runs disagree
    num_images_needed: int | None = None  # test images for an interval as narrow as the margin


class Recipe(BaseModel):
    """Two recipes over seeds; ``a`` and ``b`` are groups. ``verdict`` is None below two seeds each."""

    a: str
    b: str
    a_name: str
    b_name: str
    n_a: int
    n_b: int
    num_failed: int
    method: Literal["paired t", "Welch t"] | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    p_value_adjusted: float | None = None
    from_images: bool = False  # the test images, not the seeds, decide how wide the interval is
    further_seeds: int | None = None  # of each, by the power calculation; None where no number would do
    false_alarm_rate: float = ALPHA
    verdict: Verdict | None = None
    heading: str
    explanation: str
    says: str = ""
    says_not: str = ""
    notes: list[str] = []


class Group(BaseModel):
    """The repeats of one recipe that are counted: distinct seeds, newest finished run of each, at one epoch."""

    group: str
    name: str
    epoch: int | None  # None where the runs stand at different epochs (best, early stopping) or none is finished
    runs: list[str]
    seeds: list[int]
    accuracies: list[float]
    mean: float | None
    interval: tuple[float, float] | None
    standard_deviation: float | None
    num_seeds: int  # all seeds that were started
    num_failed: int
    num_other_epoch: int
    summary: str


class ConfigDifference(BaseModel):
    """A field in which the runs differ, with the value of each run in their order; width as it is in force."""

    field: str
    title: str
    values: list[Any]
    is_known: list[bool]  # False for a run whose config lacks the field; its value here is None
    # a choice that can explain a difference; not the seed, the device or what follows from another field
    is_factor: bool


class Answers(BaseModel):
    """What one run answered at the epoch compared, counted from its stored answers; None where it has none.

    ``defect`` is a sentence where the count differs from that in the run's log, else "".
    """

    run: str
    epoch: int | None
    num_images: int = 0
    num_correct: int = 0
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    calibration_error: float | None = None
    calibration_interval: tuple[float, float] | None = None
    reported_correct: int | None = None
    defect: str = ""


class BestOf(BaseModel):
    """The best of several runs, chosen by the images that it is shown on: by how much its accuracy is too high."""

    run: str
    num_runs: int
    accuracy: float
    optimism: float  # a fraction; the mean drop from one half of the images to the other
    text: str


class BudgetRow(BaseModel):
    """What each run was given, in the order of the runs."""

    field: str
    title: str
    values: list[int | float | None]
    verdict: str


class Comparison(BaseModel):
    """The answer of ``compare``."""

    margin: float
    level: float  # of the pairs' intervals
    num_tested: int  # pairs in the family
    names: dict[str, str]  # run id -> the name used in sentences
    answers: list[Answers]  # in the order of the runs
    best_of: BestOf | None  # None below three comparable runs
    pairs: list[Pair]
    recipes: list[Recipe]
    groups: list[Group]
    config_differences: list[ConfigDifference]
    budget: list[BudgetRow]
    fairness: list[str]
    notes: list[str]


def compare(
    runs: Sequence[ComparedRun], groups: Mapping[str, Sequence[ComparedRun]], *, base: str | None = None,
    margin: float = DEFAULT_MARGIN, at: str = "last",
) -> Comparison:  # fmt: skip
    """Compare ``runs`` in their order, and their recipes over all repeats in ``groups`` (group -> its runs).

    ``base`` limits the pairs to (other, base). ``at`` is last, best or an epoch, as the answers were loaded. Raises
    ``CompareError``.
    """
    _check(runs, base, margin)
    names = short_names(runs)
    pairs, level, num_tested = _pairs(runs, _chosen(runs, base), names, margin)
    members = _members(runs, groups, at)
    recipes = _recipes(members, _first_group(runs, base), margin)
    differences = config_differences(runs)
    _add_agreement(pairs, runs, recipes)
    best = _best_of(runs, names)
    notes = [family_note(num_tested, level)] if num_tested else []
    notes += [note for note in (margin_note(margin), best.text if best else None) if note]
    if at == "best" and any(not run.config.get("validation_fraction") for run in runs):
        notes.append(_("The best epoch was chosen on the test images, so these accuracies are optimistic."))
    return Comparison(
        margin=margin, level=level, num_tested=num_tested, names=names, answers=[_answers(run) for run in runs],
        best_of=best, pairs=pairs, recipes=recipes,
        groups=[member.model for member in members], config_differences=differences, budget=budget(runs, names),
        fairness=fairness(runs, differences), notes=notes,
    )  # fmt: skip


def _check(runs: Sequence[ComparedRun], base: str | None, margin: float) -> None:
    ids = [run.id for run in runs]
    if len(set(ids)) < len(ids):
        raise CompareError(_("A run is named twice. Name each run once."))
    if base is not None and base not in ids:
        raise CompareError(_("The base run is not among the runs compared. Add it, or leave base out."))
    if not _SMALLEST_MARGIN <= margin <= _LARGEST_MARGIN:
        raise CompareError(
            _("The margin must be at least 0.000001 and at most 0.5, as a fraction: 0.005 is half a point.")
        )


# Names ---------------------------------------------------------------------------------------------------------------


def _stem(run: ComparedRun) -> str:
    """The run's name without its seed; its model where it has no name."""
    name = without_seed(run.name)
    model = MODELS.get(str(run.config.get("model")))
    return name or run.name.strip() or (_(model.title) if model else run.id)


def letter(position: int) -> str:
    """A to Z, then AA, AB, ..."""
    head, tail = divmod(position, 26)
    return (letter(head - 1) if head else "") + chr(ord("A") + tail)


def told_apart(names: Sequence[str]) -> list[str]:
    """The names without the parts between commas that all share, as runs of a sweep do.

    They stay as they are where nothing, or only a seed, would be left of one.
    """
    parts = [name.split(", ") for name in names]
    shared = set.intersection(*map(set, parts)) if len(set(names)) > 1 else set()
    left = [", ".join(part for part in own if part not in shared) for own in parts]
    return left if all(map(without_seed, left)) else list(names)


def short_names(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Run id -> a short name that no other run has: without seed, else with its seed, else with its letter."""
    letters = {run.id: run.letter or letter(i) for i, run in enumerate(runs)}
    stem = dict(zip((run.id for run in runs), told_apart([_stem(run) for run in runs]), strict=True))
    words = {run.id: _("{name}, seed {seed}") if ", " in stem[run.id] else _("{name} seed {seed}") for run in runs}
    with_seed = {run.id: words[run.id].format(name=stem[run.id], seed=run.seed) for run in runs}
    stems, seeded = Counter(stem.values()), Counter(with_seed.values())
    names = {}
    for run in runs:
        if stems[stem[run.id]] == 1:
            names[run.id] = stem[run.id]
        elif seeded[with_seed[run.id]] == 1:
            names[run.id] = with_seed[run.id]
        else:
            names[run.id] = f"{stem[run.id]} ({letters[run.id]})"
    return names


# Single runs ----------------------------------------------------------------------------------------------------------


def _answers(run: ComparedRun) -> Answers:
    if not run.has_answers:
        return Answers(run=run.id, epoch=run.epoch)
    n, right = len(run.correct), int(run.correct.sum())
    low, high = statistics.wilson_interval(right, n)
    found = run.calibration
    return Answers(
        run=run.id, epoch=run.epoch, num_images=n, num_correct=right, accuracy=run.accuracy,
        interval=(float(low), float(high)), calibration_error=found.value if found else None,
        calibration_interval=(found.low, found.high) if found else None, reported_correct=run.reported_correct,
        defect=defect_of(run.epoch or 0, right, n, run.reported_correct),
    )  # fmt: skip


def _best_of(runs: Sequence[ComparedRun], names: Mapping[str, str]) -> BestOf | None:
    """Of the most runs that answered the same images, three at least, the best, and how optimistic its accuracy is."""
    by_images: dict[tuple[str, int], list[ComparedRun]] = {}
    for run in runs:
        if run.has_answers:
            by_images.setdefault(run.images_key, []).append(run)
    chosen = max(by_images.values(), key=len, default=[])
    if len(chosen) < _FEWEST_TO_CHOOSE_FROM or len(chosen[0].correct) < 2:
        return None
    best = max(chosen, key=lambda run: run.accuracy)
    optimism = statistics.best_of_n_optimism(np.stack([run.correct for run in chosen]))
    text = best_of_note(names[best.id], len(chosen), best.accuracy, optimism)
    return BestOf(run=best.id, num_runs=len(chosen), accuracy=best.accuracy, optimism=optimism, text=text)


# Pairs ---------------------------------------------------------------------------------------------------------------

Positions = list[tuple[int, int]]


def _chosen(runs: Sequence[ComparedRun], base: str | None) -> Positions:
    """Positions (a, b) of the pairs to show."""
    if base is None:
        return list(combinations(range(len(runs)), 2))
    b = next(i for i, run in enumerate(runs) if run.id == base)
    return [(a, b) for a in range(len(runs)) if a != b]


def _comparable(a: ComparedRun, b: ComparedRun) -> bool:
    return a.has_answers and b.has_answers and a.images_key == b.images_key


def _pairs(
    runs: Sequence[ComparedRun], chosen: Positions, names: Mapping[str, str], margin: float
) -> tuple[list[Pair], float, int]:
    """All pairs in order, the level of their intervals, and how many were tested."""
    tested = [(i, j) for i, j in chosen if _comparable(runs[i], runs[j])]
    level = 1 - ALPHA / max(len(tested), 1)
    found = dict(zip(tested, _tested_pairs(runs, tested, names, margin, level), strict=True)) if tested else {}
    return [found.get((i, j)) or _untested(runs[i], runs[j], names) for i, j in chosen], level, len(tested)


def _own_names(a: ComparedRun, b: ComparedRun, names: Mapping[str, str]) -> dict[str, str]:
    """The names of two runs in sentences on them alone."""
    return dict(zip((a.id, b.id), told_apart([names[a.id], names[b.id]]), strict=True))


def _untested(a: ComparedRun, b: ComparedRun, names: Mapping[str, str]) -> Pair:
    own = _own_names(a, b, names)
    missing = next((run for run in (a, b) if not run.has_answers), None)
    text = no_epoch(own[missing.id]) if missing else other_images(own[b.id])
    return Pair(
        a=a.id, b=b.id, a_name=own[a.id], b_name=own[b.id], verdict="not_comparable", heading=text.heading,
        explanation=text.explanation,
    )  # fmt: skip


def agreement_counts(runs: Sequence[ComparedRun]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two tables [R, R]: on how many images both runs are right, and on how many they gave the same answer.

    0 for runs that can't be compared. The first is the product of the matrix right or wrong [R, N] with its transpose,
    by counting bits: BLAS is as fast on an idle machine, but here its threads wait for cores on which runs train (up to
    0.4 s instead of 1 ms).
    """
    right = np.zeros((len(runs), len(runs)), np.int64)
    same = np.zeros_like(right)
    for key in {run.images_key for run in runs if run.has_answers}:
        rows = [i for i, run in enumerate(runs) if run.has_answers and run.images_key == key]
        bits = statistics.packed(np.stack([runs[i].correct for i in rows]))
        predicted = np.stack([np.asarray(runs[i].predicted) for i in rows])
        for i, own_bits, answers in zip(rows, bits, predicted, strict=True):
            right[i, rows] = np.bitwise_count(bits & own_bits).sum(axis=1, dtype=np.int64)
            same[i, rows] = np.count_nonzero(predicted == answers, axis=1)
    return right, same


def _tested_pairs(
    runs: Sequence[ComparedRun], tested: Positions, names: Mapping[str, str], margin: float, level: float
) -> list[Pair]:
    right, same = agreement_counts(runs)
    i, j = np.array(tested).T
    n = np.array([len(runs[a].correct) for a in i])
    both, total = right[i, j], np.diag(right)
    only_a, only_b = total[i] - both, total[j] - both
    p = statistics.mcnemar_p(only_a, only_b)
    low, high = statistics.paired_interval(only_a, only_b, n, level)
    difference = (only_a - only_b) / n
    columns = {
        "both": both, "only_a": only_a, "only_b": only_b, "n": n, "same": same[i, j], "p": p, "adjusted": statistics.holm(p),
        "low": low, "high": high, "difference": difference,
        "detectable": statistics.smallest_detectable_difference(only_a + only_b, n, level),
        "needed": statistics.images_needed(only_a + only_b, difference, n, margin, level),
        "equivalence": statistics.tost_paired(only_a, only_b, n, margin),
    }  # fmt: skip
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    kappas = [_kappa(runs[a], runs[b]) if len(tested) <= _MOST_KAPPAS else None for a, b in tested]
    shared = {"margin": margin, "level": level, "num_pairs": len(tested),
              "fewest_images": statistics.fewest_images_for_margin(margin, level)}  # fmt: skip
    return [
        _pair(runs[a], runs[b], names, dict(zip(columns, row, strict=True)), shared, kappa)
        for (a, b), row, kappa in zip(tested, rows, kappas, strict=True)
    ]


def _kappa(a: ComparedRun, b: ComparedRun) -> Kappa:
    assert a.predicted is not None
    assert b.predicted is not None
    found = statistics.kappa(a.predicted, b.predicted)
    return Kappa(value=found.value, interval=(found.low, found.high))


def _pair(
    a: ComparedRun, b: ComparedRun, names: Mapping[str, str], row: dict[str, Any], shared: dict[str, Any],
    kappa: Kappa | None,
) -> Pair:  # fmt: skip
    n, both, only_a, only_b = row["n"], row["both"], row["only_a"], row["only_b"]
    own = _own_names(a, b, names)
    facts = PairFacts(
        a=own[a.id], b=own[b.id], num_images=n, a_correct=both + only_a, b_correct=both + only_b, only_a=only_a,
        only_b=only_b, difference=row["difference"], low=row["low"], high=row["high"], p_value=row["p"],
        p_adjusted=row["adjusted"], identical=row["same"] == n, same_recipe=a.group == b.group, **shared,
    )  # fmt: skip
    verdict, text = pair_verdict(facts)
    detectable = row["detectable"]
    return Pair(
        a=a.id, b=b.id, a_name=facts.a, b_name=facts.b, num_images=n, a_correct=facts.a_correct,
        b_correct=facts.b_correct, both_correct=both, only_a_correct=only_a, only_b_correct=only_b,
        both_wrong=n - both - only_a - only_b, same_wrong_answer=row["same"] - both, difference=facts.difference,
        interval=(facts.low, facts.high), p_value=facts.p_value, p_value_adjusted=facts.p_adjusted, verdict=verdict,
        evidence=evidence(facts.disagreements), **vars(text), agreement=row["same"] / n, kappa=kappa,
        equivalence_p_value=row["equivalence"],
        smallest_detectable_difference=None if np.isnan(detectable) else detectable,
        num_images_needed=int(row["needed"]) if facts.disagreements else None,
    )  # fmt: skip


def _add_agreement(pairs: list[Pair], runs: Sequence[ComparedRun], recipes: list[Recipe]) -> None:
    """Let the sentence on what a pair does not say end with what the seeds say, where they say something."""
    groups = {run.id: run.group for run in runs}
    known = {frozenset((recipe.a, recipe.b)): recipe for recipe in recipes}
    for pair in pairs:
        if pair.verdict == "not_comparable" or groups[pair.a] == groups[pair.b]:
            continue
        pair.says_not += " " + _seeds_say(known[frozenset((groups[pair.a], groups[pair.b]))], pair, groups)


def _seeds_say(recipe: Recipe, pair: Pair, groups: Mapping[str, str]) -> str:
    if recipe.verdict is None:
        return _("One seed each says nothing about the recipes.") if recipe.n_a == recipe.n_b == 1 else _(
            "Too few seeds say nothing about the recipes."
        )  # fmt: skip
    if recipe.interval is None or recipe.verdict not in ("a_better", "b_better"):
        return _("With {seeds} the recipes can't be told apart.").format(seeds=seeds_text(recipe.n_a, recipe.n_b))
    leader = recipe.a if recipe.verdict == "a_better" else recipe.b
    winner = {"a_better": groups[pair.a], "b_better": groups[pair.b]}.get(pair.verdict)
    low, high = sorted(abs(limit) for limit in recipe.interval)
    text = _("With {seeds} the recipe {leader} leads by {low} to {high} points.")
    if leader == winner:
        text = _("Here they agree: with {seeds} the recipe {leader} leads by {low} to {high} points.")
    return text.format(
        seeds=seeds_text(recipe.n_a, recipe.n_b), leader=recipe.a_name if leader == recipe.a else recipe.b_name,
        low=short_points(low), high=short_points(high),
    )  # fmt: skip


# Recipes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A group with the runs that count, by rising seed."""

    model: Group
    runs: list[ComparedRun]

    @cached_property
    def mean_correct(self) -> NDArray[np.float64]:
        """How often each image was answered right [N], 0..1."""
        return np.asarray(np.mean([run.correct for run in self.runs], axis=0), np.float64)

    @cached_property
    def accuracies(self) -> list[float]:
        return [run.accuracy for run in self.runs]


def _members(runs: Sequence[ComparedRun], groups: Mapping[str, Sequence[ComparedRun]], at: str) -> list[_Member]:
    """The groups of the runs shown, in the order in which they appear."""
    shown: dict[str, list[tuple[int, ComparedRun]]] = {}
    for position, run in enumerate(runs):
        shown.setdefault(run.group, []).append((position, run))
    names = told_apart([_stem(members[0][1]) for members in shown.values()])
    stems = Counter(names)
    result = []
    for name, (group, members) in zip(names, shown.items(), strict=True):
        position, first = members[0]
        own = f"{name} ({first.letter or letter(position)})" if stems[name] > 1 else name
        result.append(_member(group, own, first, groups.get(group) or [run for _i, run in members], at))
    return result


def _member(group: str, name: str, shown: ComparedRun, repeats: Sequence[ComparedRun], at: str) -> _Member:
    newest = _newest_finished(repeats)
    own_epochs = at == "best" or shown.config.get("early_stopping_patience") is not None
    epoch = None if own_epochs else _common_epoch(shown, newest)
    used = [run for run in newest if run.images_key == newest[0].images_key and (own_epochs or run.epoch == epoch)]
    seeds = {run.seed for run in repeats}
    done = {run.seed for run in newest}
    open_ = Counter(status for seed in sorted(seeds - done) if (status := _status_of(seed, repeats)))
    accuracies = [run.accuracy for run in used]
    several = len(used) > 1
    model = Group(
        group=group, name=name, epoch=epoch, runs=[run.id for run in used], seeds=[run.seed for run in used],
        accuracies=accuracies, mean=float(np.mean(accuracies)) if used else None,
        interval=statistics.t_interval(accuracies) if several else None,
        standard_deviation=float(np.std(accuracies, ddof=1)) if several else None,
        num_seeds=len(seeds), num_failed=open_["failed"], num_other_epoch=len(newest) - len(used),
        summary=group_summary(len(seeds), len(used), open_, len(newest) - len(used)),
    )  # fmt: skip
    return _Member(model, used)


def _newest_finished(repeats: Iterable[ComparedRun]) -> list[ComparedRun]:
    """Of each seed the newest finished run, by rising seed."""
    finished = [run for run in repeats if run.status == "finished" and run.has_answers]
    by_seed = {run.seed: run for run in sorted(finished, key=lambda run: run.finished_at or "")}
    return [by_seed[seed] for seed in sorted(by_seed)]


def _common_epoch(shown: ComparedRun, finished: Sequence[ComparedRun]) -> int | None:
    """The epoch of the run shown where any finished repeat has it, else the most common one, the later of two."""
    counts = Counter(run.epoch for run in finished if run.epoch is not None)
    if not counts:
        return None
    if counts[shown.epoch or 0]:
        return shown.epoch
    return max(counts, key=lambda epoch: (counts[epoch], epoch))


def _status_of(seed: int, repeats: Iterable[ComparedRun]) -> str:
    """The status of a seed without a finished run: that of its last run in the order given."""
    return [run.status for run in repeats if run.seed == seed][-1]


def _first_group(runs: Sequence[ComparedRun], base: str | None) -> str | None:
    return next((run.group for run in runs if run.id == base), None)


def _recipes(members: Sequence[_Member], base: str | None, margin: float) -> list[Recipe]:
    """All pairs of groups, or those against the base's group; corrected for being several, as pairs are."""
    if base is None:
        chosen = list(combinations(members, 2))
    else:
        second = next(member for member in members if member.model.group == base)
        chosen = [(member, second) for member in members if member is not second]
    tested = [(a, b) for a, b in chosen if _refusal(a, b) is None]
    level = 1 - ALPHA / max(len(tested), 1)
    results = [_measure(a, b, level, margin) for a, b in tested]
    adjusted = statistics.holm([result.interval.p_value for result in results]).tolist()
    found = {
        (a.model.group, b.model.group): _recipe(a, b, result, p, margin)
        for (a, b), result, p in zip(tested, results, adjusted, strict=True)
    }
    return [found.get((a.model.group, b.model.group)) or _no_recipe(a, b) for a, b in chosen]


def _names_of(a: _Member, b: _Member) -> list[str]:
    """The names of two groups in sentences on them alone."""
    return told_apart([a.model.name, b.model.name])


def _refusal(a: _Member, b: _Member) -> tuple[Verdict | None, Text] | None:
    """Why there is no test of two recipes, or None."""
    if a.runs and b.runs and a.runs[0].images_key != b.runs[0].images_key:
        return "not_comparable", other_images(_names_of(a, b)[1])
    if min(len(a.runs), len(b.runs)) < 2:
        named = zip(_names_of(a, b), (a.model.summary, b.model.summary), strict=True)
        summaries = [f"{name}: {summary}" for name, summary in named if summary]
        return None, too_few_seeds(len(a.runs), len(b.runs), summaries)
    return None


def _no_recipe(a: _Member, b: _Member) -> Recipe:
    refusal = _refusal(a, b)
    assert refusal is not None
    verdict, text = refusal
    further = max(USEFUL_SEEDS - min(len(a.runs), len(b.runs)), 0) if verdict is None else None
    return Recipe(**_sides(a, b), further_seeds=further, verdict=verdict, **vars(text))


def _sides(a: _Member, b: _Member) -> dict[str, Any]:
    names = _names_of(a, b)
    return {
        "a": a.model.group, "b": b.model.group, "a_name": names[0], "b_name": names[1], "n_a": len(a.runs),
        "n_b": len(b.runs), "num_failed": a.model.num_failed + b.model.num_failed,
    }  # fmt: skip


@dataclass(frozen=True)
class _Measured:
    paired: bool
    interval: statistics.RecipeInterval
    seeds_needed: int | None


def _measure(a: _Member, b: _Member, level: float, margin: float) -> _Measured:
    paired = a.model.seeds == b.model.seeds
    test = (statistics.paired_t if paired else statistics.welch_t)(a.accuracies, b.accuracies)
    num_images = len(a.mean_correct)
    apart = a.mean_correct - b.mean_correct
    spread = float(np.einsum("i,i->", apart, apart)) / num_images - float(apart.mean()) ** 2  # var(), a third as long
    image_error = max(spread, 0.0) / max(num_images - 1, 1)
    if paired:
        variance, df = test.squared_error * len(a.runs), 1.0
    else:
        va, vb = float(np.var(a.accuracies, ddof=1)), float(np.var(b.accuracies, ddof=1))
        variance, df = va + vb, statistics.satterthwaite([va, vb], [1, 1])
    needed = statistics.seeds_needed(margin, variance, image_error, df_per_seed=df, level=level)
    return _Measured(paired, statistics.recipe_interval(test, image_error, num_images, level), needed)


def _looks(a: _Member, b: _Member) -> int:
    """How often the two recipes could be looked at: once, and once before each time that more seeds were added.

    A look takes two finished seeds of each. Only seeds of a sweep or of "add repeats" count as added: the log can't tell
    single runs, one started after the other, from a plan.
    """

    def finished(member: _Member, before: str) -> int:
        return sum(run.finished_at is not None and run.finished_at <= before for run in member.runs)

    added = {run.created_at for run in [*a.runs, *b.runs] if run.sweep and run.created_at}
    seen = {(finished(a, moment), finished(b, moment)) for moment in added}
    return 1 + sum(min(counts) >= 2 for counts in seen)


def _recipe(a: _Member, b: _Member, measured: _Measured, p_adjusted: float, margin: float) -> Recipe:
    found, needed, looks = measured.interval, measured.seeds_needed, _looks(a, b)
    further = None if needed is None else max(needed - min(len(a.runs), len(b.runs)), 0)
    rate = statistics.false_alarm_rate(looks)
    names = _names_of(a, b)
    facts = RecipeFacts(
        a=names[0], b=names[1], n_a=len(a.runs), n_b=len(b.runs), mean_a=a.model.mean or 0.0,
        mean_b=b.model.mean or 0.0, epoch_a=a.model.epoch, epoch_b=b.model.epoch, summary_a=a.model.summary,
        summary_b=b.model.summary, paired=measured.paired, difference=found.difference, low=found.low, high=found.high,
        p_value=found.p_value, p_adjusted=p_adjusted, margin=margin, from_images=found.from_images,
        further_seeds=further, looks=looks, false_alarm_rate=rate,
    )  # fmt: skip
    verdict, text = recipe_verdict(facts)
    return Recipe(
        **_sides(a, b), method="paired t" if measured.paired else "Welch t", difference=found.difference,
        interval=(found.low, found.high), p_value=found.p_value, p_value_adjusted=p_adjusted,
        from_images=found.from_images, further_seeds=further, false_alarm_rate=rate, verdict=verdict, **vars(text),
    )  # fmt: skip


# Configuration and budget --------------------------------------------------------------------------------------------


def config_differences(runs: Sequence[ComparedRun]) -> list[ConfigDifference]:
    """The fields in which the runs differ, in the order of ``RunConfig``.

    A field that a run's config does not have, as it is older than the field, equals nothing, whatever its default is.
    """
    result = []
    for name, info in FIELDS.items():
        known = [name in run.config for run in runs]
        given = [run.config.get(name) for run in runs]
        values = [_width(run) for run in runs] if name == "width" else given
        if any(known) and (not all(known) or any(value != values[0] for value in values)):
            result.append(
                ConfigDifference(
                    field=name, title=_(info.title or name), values=values, is_known=known,
                    is_factor=_is_factor(name, runs),
                )
            )  # fmt: skip
    return result


def _width(run: ComparedRun) -> int | None:
    model = MODELS.get(str(run.config.get("model")))
    return run.config.get("width") or (model.default_width if model else None)


def _is_factor(name: str, runs: Sequence[ComparedRun]) -> bool:
    """Whether a field that differs is a choice of its own: not where it follows from the model or does not apply."""
    given = [run.config.get(name) for run in runs]
    if name == "width" and len({run.config.get("model") for run in runs}) > 1:
        return any(value is not None for value in given)
    applies = FIELDS[name].default is None or None not in given
    return name not in _NO_FACTOR and applies


def fairness(runs: Sequence[ComparedRun], differences: Sequence[ConfigDifference]) -> list[str]:
    """Sentences on whether the runs answered the same questions, and to what a difference can be assigned."""
    if len(runs) < 2:
        return []
    assigned = _unequal_epochs(runs) or _factors(differences)
    return [*_same_images(runs, {difference.field for difference in differences}), assigned]


def _unequal_epochs(runs: Sequence[ComparedRun]) -> str:
    """Said where runs that have not finished their epochs are compared at other epochs than the rest; else ""."""
    answered = [run for run in runs if run.has_answers]
    epochs = sorted({run.epoch for run in answered if run.epoch is not None})
    short = [run for run in answered if run.status != "finished" and (run.epoch or 0) < (run.config.get("epochs") or 0)]
    if len(epochs) < 2 or not short:
        return ""
    first = ngettext(
        "{n} run is not finished, and the runs are compared after {low} to {high} epochs:",
        "{n} runs are not finished, and the runs are compared after {low} to {high} epochs:",
        len(short),
    ).format(n=len(short), low=f"{epochs[0]:,}", high=f"{epochs[-1]:,}")
    return first + " " + _("the difference can't be assigned to their configurations. Compare them at one epoch.")


def _same_images(runs: Sequence[ComparedRun], differing: set[str]) -> list[str]:
    answered = [run for run in runs if run.has_answers]
    if len({run.images_key for run in answered}) > 1 or len({run.test_fingerprint for run in runs}) > 1:
        return [_("Not all runs were tested on the same images.")]
    if not answered:
        return []
    n = len(answered[0].correct)
    same = [ngettext("the same {n} test image", "the same {n} test images in the same order", n).format(n=f"{n:,}")]
    if "normalization" not in differing:
        same.append(_("the same normalization"))
    if runs[0].config.get("permute_pixels") and not differing & {"permute_pixels", "permutation_seed"}:
        same.append(_("the same pixel permutation"))
    return [_("Comparable: {what}.").format(what=", ".join(same))]


def _factors(differences: Sequence[ConfigDifference]) -> str:
    factors = [difference.field for difference in differences if difference.is_factor]
    if not factors:
        if any(difference.field == "seed" for difference in differences):
            return _("Only the seed differs: the runs are repeats of one recipe.")
        return _("No choice differs: the runs are repeats of one configuration.")
    return ngettext(
        "One factor differs, {names}: the difference can be assigned to it.",
        "{n} factors differ ({names}): the difference can't be assigned to one of them.",
        len(factors),
    ).format(n=len(factors), names=", ".join(factors))


def budget(runs: Sequence[ComparedRun], names: Mapping[str, str]) -> list[BudgetRow]:
    """What each run was given: parameters, epochs, images, time."""
    many, long = _("{name} {ratio} × as many"), _("{name} {ratio} × as long")
    rows = [
        ("num_parameters", _("Parameters"), many), ("epochs_done", _("Epochs"), many),
        ("images_seen", _("Training images seen"), many), ("train_seconds", _("Training time"), long),
    ]  # fmt: skip
    result = []
    for name, title, words in rows:
        values: list[int | float | None] = [getattr(run, name) for run in runs]
        verdict = _apart(values, [names[run.id] for run in runs], words)
        result.append(BudgetRow(field=name, title=title, values=values, verdict=verdict))
    return result


def accuracy_rows(costs: Sequence[AccuracyCost], names: Sequence[str]) -> list[BudgetRow]:
    """What each run spent until it reached one accuracy; None where it never did, or where it was not recorded."""
    many, long = _("{name} {ratio} × as many"), _("{name} {ratio} × as long")
    rows = [
        ("seconds", _("Training time"), long), ("epoch", _("Epochs"), many), ("images", _("Training images seen"), many),
        ("flops", _("Training FLOPs"), many),
    ]  # fmt: skip
    result = []
    for name, title, words in rows:
        values: list[int | float | None] = [getattr(cost, name) for cost in costs]
        result.append(BudgetRow(field=name, title=title, values=values, verdict=_apart(values, names, words)))
    return result


def _apart(values: Sequence[float | None], names: Sequence[str], words: str) -> str:
    """ "equal", "0.3 % apart", "CNN 13 × as long"; more than two runs are not named."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(values) < 2:
        return ""
    least, most = min(known), max(known)
    if least == most:
        return _("equal")
    ratio = most / least if least > 0 else np.inf
    if ratio < 1.5:
        share = (ratio - 1) * 100
        text = _("up to {share} % apart") if len(values) > 2 else _("{share} % apart")
        return text.format(share=f"{share:.1f}" if share >= 0.05 else "< 0.1")
    times = "∞" if ratio == np.inf else f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}"
    if len(values) > 2:
        return _("up to {ratio} × apart").format(ratio=times)
    return words.format(name=names[known.index(most)], ratio=times)
