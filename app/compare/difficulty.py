"""Which test images are hard: wrong in all of several runs, disputed among them, or forgotten from one epoch to the next.

Runs answer for the same test images; those with other images or without answers are left out, each with its reason. The
numbers are pure functions over the stored answers; ``load`` reads these. Pages and API show what stands here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from app.compare.load import epoch_at
from app.state import Runoff
from app.statistics import majority_vote, paired_interval, wilson_interval
from app.store import predictions
from app.store.predictions import PredictionsError, PredictionsMissing
from app.store.tables import Run
from trainer.i18n import _
from trainer.run_folder import RunFolder

SIDES = ("wrong", "disputed", "forgotten")
_BLOCK = 50  # epochs that are counted and remembered together
_CACHED_BLOCKS = 512  # 50 kB each at 10,000 images
Interval = tuple[float, float]
Counts = NDArray[np.int64]


# Forgetting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Forgetting:
    """How often one run forgot each image [N] along some epochs, and whether it ever had it right [N].

    ``first`` and ``last`` say which images were right after the first and after the last of these epochs [N].
    """

    events: NDArray[np.uint16]
    ever_right: NDArray[np.bool_]
    first: NDArray[np.bool_]
    last: NDArray[np.bool_]
    num_epochs: int


def forgetting(rights: Iterable[NDArray[np.bool_]]) -> Forgetting | None:
    """Count the steps from right to wrong along which images were right [N] after each of rising epochs; None without one.

    Source: forgetting events of M. Toneva et al. (2019), "An Empirical Study of Example Forgetting during Deep Neural
    Network Learning", ICLR. They count training images whenever a batch holds them; here it is test images at the end
    of each epoch.
    """
    found: Forgetting | None = None
    for right in rights:
        found = joined(found, Forgetting(np.zeros(len(right), np.uint16), right, right, right, 1))
    return found


def joined(earlier: Forgetting | None, later: Forgetting | None) -> Forgetting | None:
    """The forgetting along the epochs of both, ``later`` following on ``earlier``; None stands for no epoch."""
    if earlier is None or later is None:
        return earlier or later
    return Forgetting(
        earlier.events + later.events + (earlier.last & ~later.first),
        earlier.ever_right | later.ever_right,
        earlier.first,
        later.last,
        earlier.num_epochs + later.num_epochs,
    )


# Over runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AnsweredRun:
    """One run with its answers [N] after ``epoch``, and what it forgot on the way there."""

    id: str
    name: str
    epoch: int
    predicted: NDArray[np.uint16]
    forgetting: Forgetting


@dataclass(frozen=True)
class LeftOut:
    """A run that is not counted, and why, as a sentence."""

    id: str
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Difficulty:
    """What ``runs`` (one at least) say about each of the N test images. ``labels`` are the true classes [N]."""

    labels: NDArray[np.int64]
    class_names: list[str]
    runs: list[AnsweredRun]

    @cached_property
    def predicted(self) -> NDArray[np.uint16]:
        """Answers [R, N]."""
        return np.stack([run.predicted for run in self.runs])

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Right or wrong [R, N]."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def num_right(self) -> Counts:
        """In how many runs each image is right [N]."""
        return np.asarray(self.correct.sum(axis=0, dtype=np.int64))

    @cached_property
    def vote(self) -> Counts:
        """The class that most runs name [N]."""
        return majority_vote(self.predicted)

    @cached_property
    def num_agreeing(self) -> Counts:
        """How many runs name that class [N]."""
        return np.asarray((self.predicted == self.vote).sum(axis=0, dtype=np.int64))

    @cached_property
    def forgotten(self) -> NDArray[np.float64]:
        """How often a run forgot each image, on average over the runs [N]."""
        return np.asarray(np.mean([run.forgetting.events for run in self.runs], axis=0), np.float64)

    @cached_property
    def never_right(self) -> NDArray[np.bool_]:
        """Which images no run had right after any epoch [N]."""
        return ~np.asarray(np.any([run.forgetting.ever_right for run in self.runs], axis=0), np.bool_)

    @cached_property
    def is_wrong_in_all(self) -> NDArray[np.bool_]:
        return np.asarray(self.num_right == 0)

    @cached_property
    def is_disputed(self) -> NDArray[np.bool_]:
        """Which images half of the runs have right (of an odd number: either number next to the half); none for one run."""
        count = len(self.runs)
        if count == 1:
            return np.zeros(self.num_images, np.bool_)
        return np.asarray((self.num_right == count // 2) | (self.num_right == (count + 1) // 2))

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def images(self, side: str, label: int | None = None) -> list[int]:
        """The images of one of ``SIDES``, hardest first, ties by index.

        wrong: those first on which most runs agree on one wrong class (probably mislabelled). disputed and forgotten:
        the most often forgotten first.
        """
        masks = {"wrong": self.is_wrong_in_all, "disputed": self.is_disputed, "forgotten": self.forgotten > 0}
        mask = masks[side] if label is None else masks[side] & (self.labels == label)
        chosen = np.flatnonzero(mask)
        by = self.num_agreeing if side == "wrong" else self.forgotten
        second = self.forgotten if side == "wrong" else -self.num_right
        order = np.lexsort((-second[chosen], -by[chosen]))
        return [int(i) for i in chosen[order]]

    # the vote
    @property
    def accuracies(self) -> list[float]:
        """Of each run."""
        return [float(value) for value in self.correct.mean(axis=1)]

    @property
    def best(self) -> int:
        """The position of the most accurate run."""
        return int(self.correct.sum(axis=1).argmax())

    @cached_property
    def vote_correct(self) -> NDArray[np.bool_]:
        return np.asarray(self.vote == self.labels)

    def vote_against_best(self) -> tuple[float, Interval]:
        """Accuracy of the vote minus that of the best run, with its paired 95 % interval."""
        best = self.correct[self.best]
        only_vote, only_best = int((self.vote_correct & ~best).sum()), int((best & ~self.vote_correct).sum())
        low, high = paired_interval(only_vote, only_best, self.num_images)
        return (only_vote - only_best) / self.num_images, (float(low), float(high))


def interval_of(correct: NDArray[np.bool_]) -> Interval:
    """The 95 % interval of the share of right answers [N]."""
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return float(low), float(high)


# By class ------------------------------------------------------------------------------------------------------------


class ClassDifficulty(BaseModel):
    """One class. Accuracies are fractions; ``forgotten`` is the mean number of times that a run forgot one of its images."""

    label: int
    name: str
    num_images: int
    mean_accuracy: float
    vote_accuracy: float
    vote_interval: Interval
    num_wrong_in_all: int
    num_disputed: int
    forgotten: float


def by_class(found: Difficulty) -> list[ClassDifficulty]:
    """The classes that have test images, the one with the lowest mean accuracy first."""
    rows = [_class(found, int(label)) for label in np.unique(found.labels)]
    return sorted(rows, key=lambda row: (row.mean_accuracy, row.label))


def _class(found: Difficulty, label: int) -> ClassDifficulty:
    of_class = found.labels == label
    vote = found.vote_correct[of_class]
    return ClassDifficulty(
        label=label,
        name=found.class_names[label] if label < len(found.class_names) else str(label),
        num_images=len(vote),
        mean_accuracy=float(found.correct[:, of_class].mean()),
        vote_accuracy=float(vote.mean()),
        vote_interval=interval_of(vote),
        num_wrong_in_all=int(found.is_wrong_in_all[of_class].sum()),
        num_disputed=int(found.is_disputed[of_class].sum()),
        forgotten=float(found.forgotten[of_class].mean()),
    )


# Reading -------------------------------------------------------------------------------------------------------------


def load(state: Runoff, runs: Sequence[Run], at: str = "last") -> tuple[Difficulty | None, list[LeftOut]]:
    """The difficulty over those of the runs that answered the same test images as the first with answers; the others.

    None where no run has answers. ``at`` is last, best or an epoch. Raises ``Refused`` for another ``at``.
    """
    answered: list[AnsweredRun] = []
    left_out: list[LeftOut] = []
    first: Run | None = None
    labels = np.empty(0, np.int64)
    for run in runs:
        try:
            epoch, found = _answers(state, run, at)
            if first is not None and (
                run.test_fingerprint != first.test_fingerprint or len(found.labels) != len(labels)
            ):
                raise PredictionsError(_("It was tested on other images."))
            counted = _counted(RunFolder(state.settings.runs / run.id), epoch, run.attempt)
            answered.append(AnsweredRun(run.id, run.name or run.id, epoch, found.predicted, counted))
        except PredictionsError as error:
            left_out.append(LeftOut(run.id, run.name or run.id, str(error)))
            continue
        if first is None:
            first, labels = run, found.labels
    return (Difficulty(labels, list(first.class_names), answered) if first else None), left_out


def _answers(state: Runoff, run: Run, at: str) -> tuple[int, predictions.Predictions]:
    epoch = epoch_at(run, at)
    if epoch is None:
        raise PredictionsMissing(_("It has no finished epoch yet."))
    return epoch, predictions.load(RunFolder(state.settings.runs / run.id), epoch)


def _counted(folder: RunFolder, last: int, attempt: int) -> Forgetting:
    """Over the epochs up to ``last`` whose answers are there (those of ``last`` are); blocks of them are remembered."""
    blocks = [range(start, min(start + _BLOCK, last + 1)) for start in range(1, last + 1, _BLOCK)]
    found: Forgetting | None = None
    for epochs in blocks:
        with contextlib.suppress(_NoAnswers):
            found = joined(found, _block(folder, epochs, attempt))
    if found is None:  # the run was deleted meanwhile
        raise PredictionsMissing(_("Its test predictions were removed."))
    return found


class _NoAnswers(Exception):
    """No epoch of a block has answers. An exception, as the cache would remember a value: the files may come back."""


@lru_cache(maxsize=_CACHED_BLOCKS)
def _block(folder: RunFolder, epochs: range, attempt: int) -> Forgetting:
    """Over some epochs; a later ``attempt`` of the run may have replaced their answers. Raises ``_NoAnswers``."""
    found = forgetting(_kept(folder, epochs))
    if found is None:
        raise _NoAnswers
    return found


def _kept(folder: RunFolder, epochs: range) -> Iterable[NDArray[np.bool_]]:
    for epoch in epochs:
        with contextlib.suppress(PredictionsMissing):
            yield predictions.load_correct(folder, epoch)
