"""The recipes of a comparison: which of their repeats are counted, and the tests of two recipes over seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from app import statistics
from app.compare.names import pair_names, recipe_names
from app.compare.recipe_verdicts import group_summary, recipe_verdict, too_few_seeds
from app.compare.shapes import ALPHA, ComparedRun, Group, Recipe, RecipeTest, Verdict
from app.compare.verdicts import Text, other_images

USEFUL_SEEDS = 5


# Groups --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountedGroup:
    """A group with the runs that are counted, in ascending order of their seeds."""

    group: Group
    runs: list[ComparedRun]

    @cached_property
    def mean_correct(self) -> NDArray[np.float64]:
        """The fraction of runs that predict each image correctly, float64 [N]."""
        return np.asarray(np.mean([run.correct for run in self.runs], axis=0), np.float64)


def count_groups(
    runs: Sequence[ComparedRun], repeats: Mapping[str, Sequence[ComparedRun]], at: str
) -> list[CountedGroup]:
    """The groups of the runs in order of appearance, each with its repeats from ``repeats`` (group -> its runs)."""
    members: dict[str, list[tuple[int, ComparedRun]]] = {}
    for position, run in enumerate(runs):
        members.setdefault(run.group, []).append((position, run))
    firsts = [own[0] for own in members.values()]
    return [
        _count(group, name, own[0][1], repeats.get(group) or [run for _position, run in own], at)
        for name, (group, own) in zip(recipe_names(firsts), members.items(), strict=True)
    ]


def _count(group: str, name: str, shown: ComparedRun, repeats: Sequence[ComparedRun], at: str) -> CountedGroup:
    newest = _newest_finished(repeats)
    each_at_its_own_epoch = at == "best" or shown.config.get("early_stopping_patience") is not None
    epoch = None if each_at_its_own_epoch else _common_epoch(shown, newest)
    used = [
        run
        for run in newest
        if run.images_key == newest[0].images_key and (each_at_its_own_epoch or run.epoch == epoch)
    ]
    seeds = {run.seed for run in repeats}
    unfinished = _unfinished(repeats, seeds - {run.seed for run in newest})
    accuracies = [run.accuracy for run in used]
    several = len(used) > 1
    counted = Group(
        group=group,
        name=name,
        epoch=epoch,
        runs=[run.id for run in used],
        seeds=[run.seed for run in used],
        accuracies=accuracies,
        mean=float(np.mean(accuracies)) if used else None,
        interval=statistics.t_interval(accuracies) if several else None,
        standard_deviation=float(np.std(accuracies, ddof=1)) if several else None,
        num_seeds=len(seeds),
        num_failed=unfinished.count("failed"),
        num_other_epoch=len(newest) - len(used),
        summary=group_summary(len(used), len(newest) - len(used), unfinished),
    )
    return CountedGroup(counted, used)


def _newest_finished(repeats: Iterable[ComparedRun]) -> list[ComparedRun]:
    """The latest finished run of each seed, in ascending order of seeds."""
    finished = [run for run in repeats if run.status == "finished" and run.predictions is not None]
    by_seed = {run.seed: run for run in sorted(finished, key=lambda run: run.finished_at or "")}
    return [by_seed[seed] for seed in sorted(by_seed)]


def _common_epoch(shown: ComparedRun, finished: Sequence[ComparedRun]) -> int | None:
    """The epoch of the run shown if any finished repeat has it, else the most common one (the later one in a tie)."""
    counts = Counter(run.epoch for run in finished if run.epoch is not None)
    if not counts:
        return None
    if counts[shown.epoch or 0]:
        return shown.epoch
    return max(counts, key=lambda epoch: (counts[epoch], epoch))


def _unfinished(repeats: Sequence[ComparedRun], seeds: Iterable[int]) -> list[str]:
    """The status of each seed, which is that of its last run in ``repeats``."""
    last_status = {run.seed: run.status for run in repeats}
    return [last_status[seed] for seed in sorted(seeds)]


# Two groups ----------------------------------------------------------------------------------------------------------

Two = tuple[CountedGroup, CountedGroup]


def recipes_of(groups: Sequence[CountedGroup], base: str | None, margin: float) -> list[Recipe]:
    """Compare every pair of groups, or all other groups with the group ``base``.

    p-values and levels are corrected for the number of pairs that have a test.
    """
    chosen = _chosen(groups, base)
    tested = [two for two in chosen if _refusal(*two) is None]
    level = 1 - ALPHA / max(len(tested), 1)
    measured = [_measure(a, b, level, margin) for a, b in tested]
    adjusted = statistics.holm([result.interval.p_value for result in measured]).tolist()
    tests = iter(_test(a, b, result, p, margin) for (a, b), result, p in zip(tested, measured, adjusted, strict=True))
    return [_untested(a, b, *refusal) if (refusal := _refusal(a, b)) else _tested(a, b, next(tests)) for a, b in chosen]


def _chosen(groups: Sequence[CountedGroup], base: str | None) -> list[Two]:
    if base is None:
        return list(combinations(groups, 2))
    base_group = next(counted for counted in groups if counted.group.group == base)
    return [(counted, base_group) for counted in groups if counted is not base_group]


def _refusal(a: CountedGroup, b: CountedGroup) -> tuple[Verdict | None, Text] | None:
    """Why two recipes can't be tested: a verdict (None for too few seeds) and its text. None if they can."""
    names = pair_names(a.group.name, b.group.name)
    if a.runs and b.runs and a.runs[0].images_key != b.runs[0].images_key:
        return "not_comparable", other_images(names[1])
    if min(len(a.runs), len(b.runs)) < 2:
        named = zip(names, (a.group.summary, b.group.summary), strict=True)
        return None, too_few_seeds(len(a.runs), len(b.runs), [f"{name}: {text}" for name, text in named if text])
    return None


@dataclass(frozen=True)
class _Measured:
    interval: statistics.RecipeInterval
    seeds_needed: int | None


def _measure(a: CountedGroup, b: CountedGroup, level: float, margin: float) -> _Measured:
    paired = a.group.seeds == b.group.seeds
    test = (statistics.paired_t if paired else statistics.welch_t)(a.group.accuracies, b.group.accuracies)
    num_images = len(a.mean_correct)
    apart = a.mean_correct - b.mean_correct
    # the variance, three times as fast as var()
    spread = float(np.einsum("i,i->", apart, apart)) / num_images - float(apart.mean()) ** 2
    image_error = max(spread, 0.0) / max(num_images - 1, 1)
    if paired:
        variance, df = test.squared_error * len(a.runs), 1.0
    else:
        va, vb = float(np.var(a.group.accuracies, ddof=1)), float(np.var(b.group.accuracies, ddof=1))
        variance, df = va + vb, statistics.satterthwaite([va, vb], [1, 1])
    needed = statistics.seeds_needed(margin, variance, image_error, df_per_seed=df, level=level)
    return _Measured(statistics.recipe_interval(test, image_error, num_images, level), needed)


def _looks(a: CountedGroup, b: CountedGroup) -> int:
    """How many looks at the result were possible: one now, and one before each time that seeds were added.

    A look requires two finished seeds of each recipe. Only seeds of a sweep or of "add repeats" count as added, because
    single runs that were started after seeing a result can't be distinguished from those that were planned.
    """

    def num_finished(counted: CountedGroup, before: str) -> int:
        return sum(run.finished_at is not None and run.finished_at <= before for run in counted.runs)

    added = {run.created_at for run in [*a.runs, *b.runs] if run.sweep and run.created_at}
    seen = {(num_finished(a, moment), num_finished(b, moment)) for moment in added}
    return 1 + sum(min(counts) >= 2 for counts in seen)


def _test(a: CountedGroup, b: CountedGroup, measured: _Measured, p_adjusted: float, margin: float) -> RecipeTest:
    interval, needed = measured.interval, measured.seeds_needed
    a_name, b_name = pair_names(a.group.name, b.group.name)
    return RecipeTest(
        a=a.group,
        b=b.group,
        a_name=a_name,
        b_name=b_name,
        is_paired=a.group.seeds == b.group.seeds,
        difference=interval.difference,
        low=interval.low,
        high=interval.high,
        p_value=interval.p_value,
        p_value_adjusted=p_adjusted,
        margin=margin,
        from_images=interval.from_images,
        further_seeds=None if needed is None else max(needed - min(len(a.runs), len(b.runs)), 0),
        looks=_looks(a, b),
    )


# What comes out ------------------------------------------------------------------------------------------------------


def _tested(a: CountedGroup, b: CountedGroup, test: RecipeTest) -> Recipe:
    verdict, text = recipe_verdict(test)
    return Recipe(
        a=a.group.group,
        b=b.group.group,
        a_name=test.a_name,
        b_name=test.b_name,
        n_a=len(a.runs),
        n_b=len(b.runs),
        num_failed=a.group.num_failed + b.group.num_failed,
        method="paired t" if test.is_paired else "Welch t",
        difference=test.difference,
        interval=(test.low, test.high),
        p_value=test.p_value,
        p_value_adjusted=test.p_value_adjusted,
        from_images=test.from_images,
        further_seeds=test.further_seeds,
        false_alarm_rate=statistics.false_alarm_rate(test.looks),
        verdict=verdict,
        heading=text.heading,
        explanation=text.explanation,
        says=text.says,
        says_not=text.says_not,
        notes=text.notes,
    )


def _untested(a: CountedGroup, b: CountedGroup, verdict: Verdict | None, text: Text) -> Recipe:
    a_name, b_name = pair_names(a.group.name, b.group.name)
    missing = max(USEFUL_SEEDS - min(len(a.runs), len(b.runs)), 0)
    return Recipe(
        a=a.group.group,
        b=b.group.group,
        a_name=a_name,
        b_name=b_name,
        n_a=len(a.runs),
        n_b=len(b.runs),
        num_failed=a.group.num_failed + b.group.num_failed,
        further_seeds=missing if verdict is None else None,
        verdict=verdict,
        heading=text.heading,
        explanation=text.explanation,
    )
