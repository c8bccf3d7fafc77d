"""How far the predictions of several runs agree: kappa, differences by class, majority vote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from app.statistics.paired import paired_interval
from app.statistics.proportions import wilson_interval
from app.statistics.quantiles import LEVEL, Floats


@dataclass(frozen=True)
class Kappa:
    """Agreement of two runs beyond chance (at most 1, 0 is chance), its interval; plain agreement is a fraction."""

    value: float
    low: float
    high: float
    agreement: float
    standard_error: float


def kappa(
    predicted_a: ArrayLike, predicted_b: ArrayLike, level: float = LEVEL, *, same: NDArray[np.bool_] | None = None
) -> Kappa:
    """Cohen's kappa of the classes [N] that two runs predict for the same images; 1 where all N are equal.

    ``same`` says where they are equal [N], if the caller knows it already.

    Sources: J. Cohen (1960), Educ. Psychol. Meas. 20, 37-46; standard error: J. L. Fleiss, J. Cohen, B. S. Everitt
    (1969), Psychol. Bull. 72, 323-327. That error is 0 where the runs never disagree, so the interval is Wilson's of the
    agreement, for as many images as give that error (E. L. Korn, B. I. Graubard (1998), Surv. Methodol. 24, 193-201),
    put on kappa's scale. Raises ``ValueError`` without images.
    """
    a, b = np.asarray(predicted_a, np.int64), np.asarray(predicted_b, np.int64)
    n = len(a)
    if n == 0:
        raise ValueError("an agreement needs images")
    size = int(max(a.max(), b.max())) + 1
    share_a, share_b = np.bincount(a, minlength=size) / n, np.bincount(b, minlength=size) / n
    same = np.asarray(a == b) if same is None else same
    agreement, chance = float(same.mean()), float(share_a @ share_b)
    if chance == 1:
        return Kappa(1.0, 1.0, 1.0, 1.0, 0.0)
    value = (agreement - chance) / (1 - chance)
    # Fleiss, Cohen and Everitt's sums over the table of pairs of classes, taken image by image
    weight = same * (1 - chance) - (share_b[a] + share_a[b]) * (1 - agreement)
    mean = agreement * chance - 2 * chance + agreement
    variance = max(float((weight**2).mean()) - mean**2, 0.0) / (n * (1 - chance) ** 4)
    apart = agreement * (1 - agreement)
    effective = apart / (variance * (1 - chance) ** 2) if variance > 0 and apart > 0 else n
    low, high = (float(side) for side in wilson_interval(agreement * effective, effective, level))
    low, high = max(1 - (1 - low) / (1 - chance), -1.0), 1 - (1 - high) / (1 - chance)
    return Kappa(value, low, high, agreement, math.sqrt(variance))


@dataclass(frozen=True, eq=False)
class ClassDifferences:
    """Per class [C]: images, both accuracies, and the interval of a minus b. No images: NaN and (-1, 1)."""

    num_images: NDArray[np.int64]
    accuracy_a: Floats
    accuracy_b: Floats
    low: Floats
    high: Floats


def class_differences(
    labels: ArrayLike, correct_a: ArrayLike, correct_b: ArrayLike, num_classes: int, level: float = LEVEL
) -> ClassDifferences:
    """Accuracies of two runs over the images of each class: ``labels`` [N], right or wrong [N] each.

    Intervals are ``paired_interval``'s, each at ``level``; over C classes 1 - 0.05 / C keeps all of them together.
    Raises ``ValueError`` where a class is not below ``num_classes``.
    """
    classes = np.asarray(labels, np.int64)
    if len(classes) and int(classes.max()) >= num_classes:
        raise ValueError(f"a class is not below {num_classes}")
    a, b = np.asarray(correct_a, np.bool_), np.asarray(correct_b, np.bool_)

    def count(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(classes[chosen], minlength=num_classes).astype(np.int64)

    n = count(np.ones_like(a))
    low, high = paired_interval(count(a & ~b), count(b & ~a), np.maximum(n, 1), level)
    shares = [np.where(n > 0, count(right) / np.maximum(n, 1), np.nan) for right in (a, b)]
    return ClassDifferences(n, shares[0], shares[1], np.where(n > 0, low, -1.0), np.where(n > 0, high, 1.0))


def majority_vote(predicted: ArrayLike) -> NDArray[np.int64]:
    """The class [N] that most of the runs [R >= 1, N] name. A tie goes to the smallest class, whatever the runs' order."""
    rows: NDArray[np.int64] = np.sort(np.asarray(predicted, np.int64), axis=0)
    winner: NDArray[np.int64] = rows[0].copy()
    most = length = np.ones(rows.shape[1], np.int64)
    for before, row in pairwise(rows):
        length = np.where(row == before, length + 1, 1)
        ahead = length > most
        winner, most = np.where(ahead, row, winner), np.where(ahead, length, most)
    return winner
