"""Find hard test images: wrong in all of several runs, disputed among them, or forgotten from one epoch to the next.

Only runs on the same test images are counted; runs on other images or without predictions are left out, each with a
reason. The numbers are pure functions of the stored predictions, which ``load`` reads.
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
_BLOCK = 50  # epochs that are counted and cached together
_CACHED_BLOCKS = 512  # 50 kB each at 10,000 images
Interval = tuple[float, float]
Counts = NDArray[np.int64]


# Forgetting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Forgetting:
    """How often a run forgot each image in a range of epochs [N], and whether it ever predicted it correctly [N].

    ``first`` and ``last`` are which images were correct after the first and after the last of these epochs, bool [N].
    """

    events: NDArray[np.uint16]
    ever_right: NDArray[np.bool_]
    first: NDArray[np.bool_]
    last: NDArray[np.bool_]
    num_epochs: int


def forgetting(rights: Iterable[NDArray[np.bool_]]) -> Forgetting | None:
    """Count how often each image changes from correct to wrong; None without epochs.

    ``rights`` has which images were correct, bool [N], after each epoch in order. The definition is that of forgetting
    events in M. Toneva et al. (2019), "An Empirical Study of Example Forgetting during Deep Neural Network Learning",
    ICLR. They count training images whenever a batch contains them; here test images are counted at the end of each
    epoch.
    """
    total: Forgetting | None = None
    for right in rights:
        total = joined(total, Forgetting(np.zeros(len(right), np.uint16), right, right, right, 1))
    return total


def joined(earlier: Forgetting | None, later: Forgetting | None) -> Forgetting | None:
    """Join the counts of two consecutive ranges of epochs; None means no epochs."""
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
class CountedRun:
    """A run with its predictions [N] after ``epoch``, and what it forgot up to then."""

    id: str
    name: str
    epoch: int
    predicted: NDArray[np.uint16]
    forgetting: Forgetting


@dataclass(frozen=True)
class LeftOut:
    """A run that is not counted, with the reason as a sentence."""

    id: str
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Difficulty:
    """The predictions of one or more ``runs`` for the same N test images. ``labels`` are the true classes [N]."""

    labels: NDArray[np.int64]
    class_names: list[str]
    runs: list[CountedRun]

    @cached_property
    def predicted(self) -> NDArray[np.uint16]:
        """Predicted classes of R runs, uint16 [R, N]."""
        return np.stack([run.predicted for run in self.runs])

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is correct, bool [R, N]."""
        return np.asarray(self.predicted == self.labels)

    @cached_property
    def num_right(self) -> Counts:
        """In how many runs each image is predicted correctly [N]."""
        return np.asarray(self.correct.sum(axis=0, dtype=np.int64))

    @cached_property
    def vote(self) -> Counts:
        """The class that most runs predict for each image [N]."""
        return majority_vote(self.predicted)

    @cached_property
    def num_agreeing(self) -> Counts:
        """How many runs predict the class of the vote [N]."""
        return np.asarray((self.predicted == self.vote).sum(axis=0, dtype=np.int64))

    @cached_property
    def forgotten(self) -> NDArray[np.float64]:
        """How often each image was forgotten, averaged over the runs [N]."""
        return np.asarray(np.mean([run.forgetting.events for run in self.runs], axis=0), np.float64)

    @cached_property
    def never_right(self) -> NDArray[np.bool_]:
        """Which images no run predicted correctly after any epoch, bool [N]."""
        return ~np.asarray(np.any([run.forgetting.ever_right for run in self.runs], axis=0), np.bool_)

    @cached_property
    def is_wrong_in_all(self) -> NDArray[np.bool_]:
        return np.asarray(self.num_right == 0)

    @cached_property
    def is_disputed(self) -> NDArray[np.bool_]:
        """Which images half of the runs predict correctly, bool [N].

        With an odd number of runs the half is rounded up or down. With one run no image is disputed.
        """
        count = len(self.runs)
        if count == 1:
            return np.zeros(self.num_images, np.bool_)
        return np.asarray((self.num_right == count // 2) | (self.num_right == (count + 1) // 2))

    @property
    def num_images(self) -> int:
        return len(self.labels)

    def images(self, side: str, label: int | None = None) -> list[int]:
        """The images of one of ``SIDES``, hardest first, ties by index.

        ``wrong`` starts with images for which most runs predict the same wrong class (probably mislabelled).
        ``disputed`` and ``forgotten`` start with those that were forgotten most often.
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
        """The accuracy of each run."""
        return [float(value) for value in self.correct.mean(axis=1)]

    @property
    def best(self) -> int:
        """The position of the most accurate run."""
        return int(self.correct.sum(axis=1).argmax())

    @cached_property
    def vote_correct(self) -> NDArray[np.bool_]:
        return np.asarray(self.vote == self.labels)

    def vote_against_best(self) -> tuple[float, Interval]:
        """The accuracy of the vote minus that of the best run, with its paired 95 % interval."""
        best = self.correct[self.best]
        only_vote, only_best = int((self.vote_correct & ~best).sum()), int((best & ~self.vote_correct).sum())
        low, high = paired_interval(only_vote, only_best, self.num_images)
        return (only_vote - only_best) / self.num_images, (float(low), float(high))


def interval_of(correct: NDArray[np.bool_]) -> Interval:
    """The 95 % interval of the fraction of correct predictions, given bool [N]."""
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return float(low), float(high)


# By class ------------------------------------------------------------------------------------------------------------


class ClassDifficulty(BaseModel):
    """The difficulty of a class. Accuracies are fractions.

    ``forgotten`` is how many times a run forgot an image of the class, on average.
    """

    label: int
    name: str
    num_images: int
    mean_accuracy: float
    vote_accuracy: float
    vote_interval: Interval
    num_wrong_in_all: int
    num_disputed: int
    forgotten: float


def by_class(result: Difficulty) -> list[ClassDifficulty]:
    """The difficulty of each class that has test images, lowest mean accuracy first."""
    rows = [_class(result, int(label)) for label in np.unique(result.labels)]
    return sorted(rows, key=lambda row: (row.mean_accuracy, row.label))


def _class(result: Difficulty, label: int) -> ClassDifficulty:
    of_class = result.labels == label
    vote = result.vote_correct[of_class]
    return ClassDifficulty(
        label=label,
        name=result.class_names[label] if label < len(result.class_names) else str(label),
        num_images=len(vote),
        mean_accuracy=float(result.correct[:, of_class].mean()),
        vote_accuracy=float(vote.mean()),
        vote_interval=interval_of(vote),
        num_wrong_in_all=int(result.is_wrong_in_all[of_class].sum()),
        num_disputed=int(result.is_disputed[of_class].sum()),
        forgotten=float(result.forgotten[of_class].mean()),
    )


# Reading -------------------------------------------------------------------------------------------------------------


def load(state: Runoff, runs: Sequence[Run], at: str = "last") -> tuple[Difficulty | None, list[LeftOut]]:
    """Load the difficulty over runs on the same test images, and the list of runs that are left out.

    The first run with predictions decides which images these are. The difficulty is None if no run has predictions.
    ``at`` is last, best or an epoch; raises ``Refused`` for anything else.
    """
    counted: list[CountedRun] = []
    left_out: list[LeftOut] = []
    first: Run | None = None
    labels = np.empty(0, np.int64)
    for run in runs:
        try:
            epoch, stored = _stored(state, run, at)
            if first is not None and (
                run.test_fingerprint != first.test_fingerprint or len(stored.labels) != len(labels)
            ):
                raise PredictionsError(_("It was tested on other images."))
            forgotten = _counted(RunFolder(state.settings.runs / run.id), epoch, run.attempt)
            counted.append(CountedRun(run.id, run.name or run.id, epoch, stored.predicted, forgotten))
        except PredictionsError as error:
            left_out.append(LeftOut(run.id, run.name or run.id, str(error)))
            continue
        if first is None:
            first, labels = run, stored.labels
    return (Difficulty(labels, list(first.class_names), counted) if first else None), left_out


def _stored(state: Runoff, run: Run, at: str) -> tuple[int, predictions.Predictions]:
    epoch = epoch_at(run, at)
    if epoch is None:
        raise PredictionsMissing(_("It has no finished epoch yet."))
    return epoch, predictions.load(RunFolder(state.settings.runs / run.id), epoch)


def _counted(folder: RunFolder, last: int, attempt: int) -> Forgetting:
    """What a run forgot up to epoch ``last``, which has predictions; other epochs without predictions are skipped.

    Blocks of epochs are cached.
    """
    blocks = [range(start, min(start + _BLOCK, last + 1)) for start in range(1, last + 1, _BLOCK)]
    result: Forgetting | None = None
    for epochs in blocks:
        with contextlib.suppress(_NoPredictions):
            result = joined(result, _block(folder, epochs, attempt))
    if result is None:  # the run was deleted in the meantime
        raise PredictionsMissing(_("Its test predictions were removed."))
    return result


class _NoPredictions(Exception):
    """No epoch of a block has predictions. It is an exception so that it is not cached: the files may come back."""


@lru_cache(maxsize=_CACHED_BLOCKS)
def _block(folder: RunFolder, epochs: range, attempt: int) -> Forgetting:
    """What a run forgot in some epochs. Raises ``_NoPredictions``.

    ``attempt`` is part of the cache's key, because a later attempt may have replaced the predictions.
    """
    result = forgetting(_kept(folder, epochs))
    if result is None:
        raise _NoPredictions
    return result


def _kept(folder: RunFolder, epochs: range) -> Iterable[NDArray[np.bool_]]:
    for epoch in epochs:
        with contextlib.suppress(PredictionsMissing):
            yield predictions.load_correct(folder, epoch)
