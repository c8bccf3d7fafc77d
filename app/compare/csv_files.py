"""A comparison as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from app.compare.shapes import Comparison, Pair
from app.schemas import EpochOut
from app.store.tables import Run

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_PAIR_COLUMNS = [
    "a",
    "b",
    "a_name",
    "b_name",
    "num_images",
    "a_correct",
    "b_correct",
    "both_correct",
    "only_a_correct",
    "only_b_correct",
    "both_wrong",
    "same_wrong_answer",
    "difference",
    "low",
    "high",
    "level",
    "p_value",
    "p_value_adjusted",
    "agreement",
    "kappa",
    "equivalence_p_value",
    "margin",
    "verdict",
    "heading",
]


def pairs_csv(comparison: Comparison) -> bytes:
    """One line per pair; differences and intervals are fractions, a minus b."""

    def row(pair: Pair) -> list[Any]:
        low, high = pair.interval or (None, None)
        values = vars(pair) | {
            "low": low,
            "high": high,
            "level": comparison.level if pair.interval else None,
            "kappa": pair.kappa and pair.kappa.value,
            "margin": comparison.margin,
        }
        return [values[column] for column in _PAIR_COLUMNS]

    return _csv(_PAIR_COLUMNS, [row(pair) for pair in comparison.pairs])


def epochs_csv(runs: Sequence[Run], epochs: Sequence[Sequence[EpochOut]]) -> bytes:
    """The epochs of all runs, one line each, with the run's id and name in front."""
    names = list(EpochOut.model_fields)
    rows = [
        [run.id, run.name, *(getattr(epoch, name) for name in names)]
        for run, own in zip(runs, epochs, strict=True)
        for epoch in own
    ]
    return _csv(["run", "name", *names], rows)


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A header line and the rows. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in row])
    return text.getvalue().encode()
