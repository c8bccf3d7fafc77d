"""The epochs of runs, and the cost of training in seconds, images and FLOPs: in total, or until an accuracy is reached.

Only training is counted; evaluation, saving and pictures are not.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

from sqlalchemy import Row
from sqlmodel import Session, col, select

from app.schemas import AccuracyCost, EpochOut
from app.store.tables import Epoch, Run
from trainer.i18n import _

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.92, 0.95, 0.97, 0.98, 0.99)
MOST_THRESHOLDS = 5
_ROUNDING = 1e-9  # tolerance: 97.8 % as typed must match 9,780 of 10,000
_STORED = [name for name in EpochOut.model_fields if name in Epoch.model_fields]
_stored_values = attrgetter(*_STORED)


# Reading -------------------------------------------------------------------------------------------------------------


def epochs_of(session: Session, run_id: str) -> list[Epoch]:
    """The epochs of a run in order."""
    return list(session.exec(select(Epoch).where(Epoch.run_id == run_id).order_by(col(Epoch.epoch))).all())


def epochs_with_sums(session: Session, run: Run) -> list[EpochOut]:
    """The epochs of a run in order, with cumulative sums."""
    return add_sums(epochs_of(session, run.id), run.num_train)


def epochs_of_runs(session: Session, runs: Sequence[Run]) -> dict[str, list[EpochOut]]:
    """The epochs of several runs with cumulative sums, read in one query: run id -> epochs in order."""
    table = Epoch.__table__  # type: ignore[attr-defined]  # plain rows: thousands of objects would take most of the time
    query = table.select().where(table.c.run_id.in_([run.id for run in runs])).order_by(table.c.epoch)
    rows: dict[str, list[Any]] = {run.id: [] for run in runs}
    for row in session.connection().execute(query):
        rows[row.run_id].append(row)
    return {run.id: add_sums(rows[run.id], run.num_train) for run in runs}


def epochs_csv(epochs: Sequence[Epoch]) -> bytes:
    """The epochs as CSV with a header line; empty without epochs."""
    if not epochs:
        return b""
    columns = [name for name in Epoch.model_fields if name != "run_id"]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([getattr(epoch, name) for name in columns] for epoch in epochs)
    return text.getvalue().encode()


# Sums ----------------------------------------------------------------------------------------------------------------


def add_sums(epochs: Sequence[Epoch | Row[Any]], num_train: int | None) -> list[EpochOut]:
    """Add cumulative sums to the epochs (objects or rows of the table); each epoch has ``num_train`` images."""
    seconds = accumulate(epoch.seconds for epoch in epochs)
    flops = accumulate((epoch.flops for epoch in epochs), _sum_known)
    return [
        EpochOut(
            **dict(zip(_STORED, _stored_values(epoch), strict=True)),
            gflops_per_second=None if epoch.flops is None else rate(epoch.flops, epoch.seconds),
            train_seconds=seconds_so_far,
            images=num_train and num_train * epoch.epoch,
            total_flops=flops_so_far,
        )
        for epoch, seconds_so_far, flops_so_far in zip(epochs, seconds, flops, strict=True)
    ]


def _sum_known(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def rate(flops: float, seconds: float) -> float | None:
    """The achieved rate in GFLOP/s; None if the time is zero."""
    return flops / seconds / 1e9 if seconds > 0 else None


# The cost of an accuracy ---------------------------------------------------------------------------------------------


def to_accuracy(epochs: Sequence[EpochOut], accuracy: float) -> AccuracyCost:
    """The cost of training up to the first epoch whose test accuracy is at least ``accuracy`` (a fraction)."""
    first = next((epoch for epoch in epochs if epoch.test_accuracy >= accuracy - _ROUNDING), None)
    if first is None:
        return AccuracyCost(accuracy=accuracy)
    return AccuracyCost(
        accuracy=accuracy,
        epoch=first.epoch,
        seconds=first.train_seconds,
        images=first.images,
        flops=first.total_flops,
        test_accuracy=first.test_accuracy,
    )


def thresholds_passed(epochs: Sequence[EpochOut], most: int = MOST_THRESHOLDS) -> list[AccuracyCost]:
    """The ``most`` highest thresholds that the run reached, in ascending order.

    If one epoch reached several thresholds at once, only the highest of them is listed.
    """
    costs = [to_accuracy(epochs, threshold) for threshold in THRESHOLDS]
    by_epoch = {cost.epoch: cost for cost in costs if cost.epoch is not None}
    return list(by_epoch.values())[-most:]


def highest_of_all(runs: Sequence[Sequence[EpochOut]]) -> float | None:
    """The highest whole percent that every run reached, as a fraction; None if there is none."""
    tops = [max((epoch.test_accuracy for epoch in epochs), default=0.0) for epochs in runs]
    return math.floor(100 * min(tops, default=0.0) + _ROUNDING) / 100 or None


def typed_accuracy(text: str) -> tuple[float | None, str]:
    """Parse an accuracy that was typed into a form: (fraction or None, error message or "").

    A number with "%" or above 1 is in percent; any other is a fraction.
    """
    if not text.strip():
        return None, ""
    try:
        value = float(text.replace("%", ""))
    except ValueError:
        value = math.nan
    if 0 < value <= 100:
        return (value / 100 if value > 1 or "%" in text else value), ""
    return None, _("The accuracy must be above 0 and at most 100 %. You typed {typed}.").format(typed=text.strip()[:20])
