"""What training cost: seconds, images and FLOPs from the start of a run, and at which of them an accuracy was reached.

Pure over the epochs. Only training counts: evaluation, saving and pictures are left out of every sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

from sqlalchemy import Row

from app.schemas import AccuracyCost, EpochOut
from app.store.tables import Epoch
from trainer.i18n import _

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.92, 0.95, 0.97, 0.98, 0.99)
MOST_THRESHOLDS = 5
_ROUNDING = 1e-9  # 0.978 typed as 97.8 % must not miss 9,780 of 10,000 by a bit


_STORED = [name for name in EpochOut.model_fields if name in Epoch.model_fields]
_stored = attrgetter(*_STORED)


def epochs_out(epochs: Sequence[Epoch | Row[Any]], num_train: int | None) -> list[EpochOut]:
    """The epochs (objects, or plain rows of the table) with their sums; ``num_train`` images are in each."""
    seconds = accumulate(epoch.seconds for epoch in epochs)
    flops = accumulate((epoch.flops for epoch in epochs), _sum_known)
    return [
        EpochOut(
            **dict(zip(_STORED, _stored(epoch), strict=True)),
            gflops_per_second=None if epoch.flops is None else rate(epoch.flops, epoch.seconds),
            train_seconds=spent, images=num_train and num_train * epoch.epoch, total_flops=total,
        )
        for epoch, spent, total in zip(epochs, seconds, flops, strict=True)
    ]  # fmt: skip


def _sum_known(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def rate(flops: float, seconds: float) -> float | None:
    """Achieved GFLOP/s; None for a time of zero."""
    return flops / seconds / 1e9 if seconds > 0 else None


def to_accuracy(epochs: Sequence[EpochOut], accuracy: float) -> AccuracyCost:
    """What training cost up to the first epoch whose test accuracy is at least ``accuracy`` (a fraction)."""
    found = next((epoch for epoch in epochs if epoch.test_accuracy >= accuracy - _ROUNDING), None)
    if found is None:
        return AccuracyCost(accuracy=accuracy)
    return AccuracyCost(
        accuracy=accuracy, epoch=found.epoch, seconds=found.train_seconds, images=found.images, flops=found.total_flops,
        test_accuracy=found.test_accuracy,
    )  # fmt: skip


def thresholds_passed(epochs: Sequence[EpochOut], most: int = MOST_THRESHOLDS) -> list[AccuracyCost]:
    """The highest thresholds that the run passed, rising; of those that one epoch passed at once only the highest."""
    costs = [to_accuracy(epochs, threshold) for threshold in THRESHOLDS]
    by_epoch = {cost.epoch: cost for cost in costs if cost.epoch is not None}
    return list(by_epoch.values())[-most:]


def highest_of_all(runs: Sequence[Sequence[EpochOut]]) -> float | None:
    """The highest whole per cent that every run reached, as a fraction; None where there is none."""
    tops = [max((epoch.test_accuracy for epoch in epochs), default=0.0) for epochs in runs]
    return math.floor(100 * min(tops, default=0.0) + _ROUNDING) / 100 or None


def typed_accuracy(text: str) -> tuple[float | None, str]:
    """The fraction that a person typed, and what is wrong with it. With "%" or above 1 it is per cent, else a fraction."""
    if not text.strip():
        return None, ""
    try:
        value = float(text.replace("%", ""))
    except ValueError:
        value = math.nan
    if 0 < value <= 100:
        return (value / 100 if value > 1 or "%" in text else value), ""
    return None, _("The accuracy must be above 0 and at most 100 %. You typed {typed}.").format(typed=text.strip()[:20])
