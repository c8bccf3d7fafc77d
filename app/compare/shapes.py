"""The types of a comparison: the runs that go in, and what comes out.

The fields of ``Comparison`` and of all that it holds are the JSON of ``GET /api/v1/compare``. Every object is filled once
and never changed. Accuracies, differences and intervals are fractions; a difference is a minus b.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.store.predictions import Predictions

Verdict = Literal["a_better", "b_better", "negligible", "inconclusive", "not_comparable"]
Interval = tuple[float, float]
ALPHA = 0.05  # the chance of a false alarm that is accepted
DEFAULT_MARGIN = 0.005


class CompareError(ValueError):
    """The comparison is not possible as requested. The message is shown to users."""


# What goes in --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class ComparedRun:
    """One run with its predictions at the epoch compared; None before its first epoch."""

    id: str
    name: str
    config: Mapping[str, Any]  # every field of RunConfig
    group: str
    seed: int
    test_fingerprint: str
    epoch: int | None = None
    predictions: Predictions | None = field(default=None, repr=False)
    reported_correct: int | None = None  # how many were right according to the run's log
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
    def known(self) -> Predictions:
        """The predictions of a run that has some."""
        assert self.predictions is not None
        return self.predictions

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which images were predicted right [N]."""
        return self.known.correct

    @cached_property
    def accuracy(self) -> float:
        return float(self.correct.mean())

    @property
    def images_key(self) -> tuple[str, int]:
        """Equal for runs that were tested on the same images."""
        return self.test_fingerprint, self.known.num_images


# Tests, before they have words ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Family:
    """The pairs that are tested together, and what their number does to each."""

    num_pairs: int
    level: float  # of each interval
    margin: float
    fewest_images: int  # with fewer test images no result can show that a difference is below the margin


@dataclass(frozen=True, eq=False, kw_only=True)
class PairTest:
    """Counts and test of two runs over the same images: all that the sentences about them need."""

    a: ComparedRun
    b: ComparedRun
    a_name: str
    b_name: str
    num_images: int
    both_correct: int
    only_a_correct: int
    only_b_correct: int
    same_predictions: int
    difference: float
    low: float
    high: float
    p_value: float
    p_value_adjusted: float
    equivalence_p_value: float
    smallest_detectable_difference: float | None
    num_images_needed: int | None
    kappa: Kappa | None
    family: Family

    @property
    def a_correct(self) -> int:
        return self.both_correct + self.only_a_correct

    @property
    def b_correct(self) -> int:
        return self.both_correct + self.only_b_correct

    @property
    def disagreements(self) -> int:
        """Images on which exactly one of the two is right."""
        return self.only_a_correct + self.only_b_correct

    @property
    def is_identical(self) -> bool:
        return self.same_predictions == self.num_images

    @property
    def is_one_recipe(self) -> bool:
        return self.a.group == self.b.group

    @property
    def nearest(self) -> float:
        """The limit next to zero, of an interval without zero."""
        return min(abs(self.low), abs(self.high))

    @property
    def farthest(self) -> float:
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True, kw_only=True)
class RecipeTest:
    """The test of two recipes over seeds: all that the sentences about them need."""

    a: Group
    b: Group
    a_name: str
    b_name: str
    is_paired: bool
    difference: float
    low: float
    high: float
    p_value: float
    p_value_adjusted: float
    margin: float
    from_images: bool
    further_seeds: int | None
    looks: int

    @property
    def nearest(self) -> float:
        """The limit next to zero, of an interval without zero."""
        return min(abs(self.low), abs(self.high))

    @property
    def farthest(self) -> float:
        return max(abs(self.low), abs(self.high))


# What comes out ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of two runs' predictions: agreement beyond chance, 1 where all are equal, with its 95 % interval."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two trained nets over the same test images."""

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
    interval: Interval | None = None
    p_value: float | None = None
    p_value_adjusted: float | None = None
    verdict: Verdict
    heading: str
    explanation: str
    evidence: str = ""
    says: str = ""
    says_not: str = ""
    notes: list[str] = field(default_factory=list)
    agreement: float | None = None  # fraction of the images for which both predict the same class
    kappa: Kappa | None = None  # None also where more than 50 pairs are tested
    equivalence_p_value: float | None = None  # that they differ by the margin or more: two one-sided tests
    smallest_detectable_difference: float | None = None  # found 4 times in 5, given how often the runs disagree
    num_images_needed: int | None = None  # test images for an interval as narrow as the margin


@dataclass(frozen=True, kw_only=True)
class Recipe:
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
    interval: Interval | None = None
    p_value: float | None = None
    p_value_adjusted: float | None = None
    from_images: bool = False  # the test images, not the seeds, decide how wide the interval is
    further_seeds: int | None = None  # of each, by the power calculation; None where no number is enough
    false_alarm_rate: float = ALPHA
    verdict: Verdict | None = None
    heading: str
    explanation: str
    says: str = ""
    says_not: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The repeats of one recipe that are counted: the newest finished run of each seed, all at one epoch."""

    group: str
    name: str
    epoch: int | None  # None where the runs stand at different epochs (best, early stopping) or none is finished
    runs: list[str]
    seeds: list[int]
    accuracies: list[float]
    mean: float | None
    interval: Interval | None
    standard_deviation: float | None
    num_seeds: int  # all seeds that were started
    num_failed: int
    num_other_epoch: int
    summary: str


@dataclass(frozen=True, kw_only=True)
class ConfigDifference:
    """A field in which the runs differ, with the value of each run in their order; the width is the one in force."""

    field: str
    title: str
    values: list[Any]
    is_known: list[bool]  # False for a run whose config lacks the field; its value here is None
    # a choice that can explain a difference; not the seed, the device or what follows from another field
    is_factor: bool


@dataclass(frozen=True, kw_only=True)
class Score:
    """The accuracy of one run at the epoch compared, counted from its stored predictions; None where it has none.

    ``defect`` is a sentence where the count differs from that in the run's log, else "".
    """

    run: str
    epoch: int | None
    num_images: int = 0
    num_correct: int = 0
    accuracy: float | None = None
    interval: Interval | None = None
    calibration_error: float | None = None
    calibration_interval: Interval | None = None
    reported_correct: int | None = None
    defect: str = ""


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """The best of several runs, chosen by the images that it is shown on: by how much its accuracy is too high."""

    run: str
    num_runs: int
    accuracy: float
    optimism: float  # the mean drop from one half of the images to the other
    text: str


@dataclass(frozen=True, kw_only=True)
class BudgetRow:
    """One quantity that training spends, with the value of each run in their order."""

    field: str
    title: str
    values: list[int | float | None]
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several runs compared."""

    margin: float
    level: float  # of the pairs' intervals
    num_tested: int  # pairs in the family
    names: dict[str, str]  # run id -> the name used in sentences
    answers: list[Score]  # in the order of the runs
    best_of: BestOf | None  # None below three comparable runs
    pairs: list[Pair]
    recipes: list[Recipe]
    groups: list[Group]
    config_differences: list[ConfigDifference]
    budget: list[BudgetRow]
    fairness: list[str]
    notes: list[str]
