"""The pairs of a comparison: which are tested, their counts and tests, and the ``Pair`` that each becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from app import statistics
from app.compare.names import pair_names
from app.compare.recipe_verdicts import what_seeds_say
from app.compare.shapes import ALPHA, ComparedRun, Family, Kappa, Pair, PairTest, Recipe
from app.compare.verdicts import evidence, no_epoch, other_images, pair_verdict

_MOST_KAPPAS = 50  # pairs; each costs half a millisecond at 10,000 images

Two = tuple[ComparedRun, ComparedRun]


def chosen_pairs(runs: Sequence[ComparedRun], base: str | None) -> list[Two]:
    """Every pair of runs, or those of the other runs with the run ``base``."""
    if base is None:
        return list(combinations(runs, 2))
    base_run = next(run for run in runs if run.id == base)
    return [(run, base_run) for run in runs if run is not base_run]


def is_comparable(a: ComparedRun, b: ComparedRun) -> bool:
    """Whether both have predictions for the same images."""
    return a.predictions is not None and b.predictions is not None and a.images_key == b.images_key


def family_of(chosen: Sequence[Two], margin: float) -> Family:
    """The pairs among ``chosen`` that can be compared, as one family: each interval gets a level for all of them."""
    num_pairs = sum(is_comparable(a, b) for a, b in chosen)
    level = 1 - ALPHA / max(num_pairs, 1)
    fewest_images = statistics.fewest_images_for_margin(margin, level)
    return Family(num_pairs=num_pairs, level=level, margin=margin, fewest_images=fewest_images)


def pairs_of(chosen: Sequence[Two], family: Family, names: Mapping[str, str], recipes: Sequence[Recipe]) -> list[Pair]:
    """The pairs in the order of ``chosen``. ``names`` are those of the runs, ``recipes`` what their seeds say."""
    tests = iter(_tests([(a, b) for a, b in chosen if is_comparable(a, b)], family, names))
    by_groups = {frozenset((recipe.a, recipe.b)): recipe for recipe in recipes}
    return [_tested(next(tests), by_groups) if is_comparable(a, b) else _not_comparable(a, b, names) for a, b in chosen]


# Counts and tests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairCounts:
    """On how many images both runs are right, and for how many both predict the same class."""

    both_correct: int
    same_predictions: int
    kappa: Kappa | None


def count_pair(a: ComparedRun, b: ComparedRun, *, with_kappa: bool) -> PairCounts:
    """What two runs have in common."""
    same = np.asarray(a.known.predicted == b.known.predicted)
    kappa = None
    if with_kappa:
        found = statistics.kappa(a.known.predicted, b.known.predicted, same=same)
        kappa = Kappa(found.value, (found.low, found.high))
    return PairCounts(int(np.count_nonzero(a.correct & b.correct)), int(np.count_nonzero(same)), kappa)


def _tests(tested: Sequence[Two], family: Family, names: Mapping[str, str]) -> list[PairTest]:
    """The tests of all pairs; each formula runs once over arrays [pairs]."""
    if not tested:
        return []
    counts = [count_pair(a, b, with_kappa=len(tested) <= _MOST_KAPPAS) for a, b in tested]
    n = np.array([a.known.num_images for a, _b in tested])
    both = np.array([count.both_correct for count in counts])
    only_a = np.array([a.known.num_correct for a, _b in tested]) - both
    only_b = np.array([b.known.num_correct for _a, b in tested]) - both
    difference = (only_a - only_b) / n
    low, high = statistics.paired_interval(only_a, only_b, n, family.level)
    p_value = statistics.mcnemar_p(only_a, only_b)
    adjusted = statistics.holm(p_value)
    equivalence = statistics.tost_paired(only_a, only_b, n, family.margin)
    detectable = statistics.smallest_detectable_difference(only_a + only_b, n, family.level)
    needed = statistics.images_needed(only_a + only_b, difference, n, family.margin, family.level)
    tests = []
    for i, ((a, b), count) in enumerate(zip(tested, counts, strict=True)):
        a_name, b_name = pair_names(names[a.id], names[b.id])
        test = PairTest(
            a=a,
            b=b,
            a_name=a_name,
            b_name=b_name,
            num_images=int(n[i]),
            both_correct=count.both_correct,
            only_a_correct=int(only_a[i]),
            only_b_correct=int(only_b[i]),
            same_predictions=count.same_predictions,
            difference=float(difference[i]),
            low=float(low[i]),
            high=float(high[i]),
            p_value=float(p_value[i]),
            p_value_adjusted=float(adjusted[i]),
            equivalence_p_value=float(equivalence[i]),
            smallest_detectable_difference=None if np.isnan(detectable[i]) else float(detectable[i]),
            num_images_needed=int(needed[i]) if only_a[i] + only_b[i] else None,
            kappa=count.kappa,
            family=family,
        )
        tests.append(test)
    return tests


# What comes out ------------------------------------------------------------------------------------------------------


def _tested(test: PairTest, recipes: Mapping[frozenset[str], Recipe]) -> Pair:
    verdict, text = pair_verdict(test)
    says_not = text.says_not
    if not test.is_one_recipe:
        winner = {"a_better": test.a.group, "b_better": test.b.group}.get(verdict)
        says_not += " " + what_seeds_say(recipes[frozenset((test.a.group, test.b.group))], winner)
    return Pair(
        a=test.a.id,
        b=test.b.id,
        a_name=test.a_name,
        b_name=test.b_name,
        num_images=test.num_images,
        a_correct=test.a_correct,
        b_correct=test.b_correct,
        both_correct=test.both_correct,
        only_a_correct=test.only_a_correct,
        only_b_correct=test.only_b_correct,
        both_wrong=test.num_images - test.both_correct - test.disagreements,
        same_wrong_answer=test.same_predictions - test.both_correct,
        difference=test.difference,
        interval=(test.low, test.high),
        p_value=test.p_value,
        p_value_adjusted=test.p_value_adjusted,
        verdict=verdict,
        heading=text.heading,
        explanation=text.explanation,
        evidence=evidence(test.disagreements),
        says=text.says,
        says_not=says_not,
        notes=text.notes,
        agreement=test.same_predictions / test.num_images,
        kappa=test.kappa,
        equivalence_p_value=test.equivalence_p_value,
        smallest_detectable_difference=test.smallest_detectable_difference,
        num_images_needed=test.num_images_needed,
    )


def _not_comparable(a: ComparedRun, b: ComparedRun, names: Mapping[str, str]) -> Pair:
    a_name, b_name = pair_names(names[a.id], names[b.id])
    if a.predictions is None or b.predictions is None:
        text = no_epoch(a_name if a.predictions is None else b_name)
    else:
        text = other_images(b_name)
    return Pair(
        a=a.id,
        b=b.id,
        a_name=a_name,
        b_name=b_name,
        verdict="not_comparable",
        heading=text.heading,
        explanation=text.explanation,
    )
