"""Curves of several runs: smoothing, thinning, means over repeats, and what of them a figure shows."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from app.compare import curves
from app.compare.curves import Repeats, View
from app.draw.figures import EpochPoint, RunCurve, plotly_json
from app.store.thinning import thin


def point(epoch: int, accuracy: float, loss: float = 0.5, flops: float | None = 1e9) -> EpochPoint:
    total = None if flops is None else flops * epoch
    return EpochPoint(
        epoch, 10.0 * epoch, 1000 * epoch, accuracy, (accuracy - 0.01, accuracy + 0.01), 0.8, loss, 0.7, total
    )


def run(index: int, accuracies: list[float], name: str = "CNN", **values: Any) -> RunCurve:
    return RunCurve(index, name, [point(e, accuracy, **values) for e, accuracy in enumerate(accuracies, 1)])


def drawn(name: curves.FigureName, singles: list[RunCurve], repeats: list[Repeats], view: View) -> dict[str, Any]:
    """The figure as plotly.js gets it."""
    return plotly_json(curves.figure(name, singles, repeats, view))


def lines(figure: dict[str, Any]) -> list[dict[str, Any]]:
    json.dumps(figure, allow_nan=False)
    return [trace for trace in figure["data"] if "fill" not in trace]


def test_thinning_keeps_extremes_and_ends() -> None:
    values = [math.sin(i / 50) for i in range(10_000)]
    values[4321], values[77] = 9.0, -9.0
    kept = thin(values, 500)
    assert len(kept) <= 500
    assert kept == sorted(set(kept))
    assert {0, 77, 4321, 9999} <= set(kept)
    assert thin([1.0, 2.0, 3.0], 3) == [0, 1, 2]
    assert thin([], 3) == []


def test_smoothing_starts_at_the_first_value() -> None:
    assert curves.smoothed([2.0, 2.0, 2.0], 0.9) == pytest.approx([2.0, 2.0, 2.0])
    assert curves.smoothed([0.0, 1.0], 0.5) == pytest.approx([0.0, 2 / 3])
    assert curves.smoothed([1.0, 3.0], 0.0) == [1.0, 3.0]


def test_single_runs_with_their_bands() -> None:
    figure = drawn("accuracy", [run(0, [0.9, 0.95]), run(1, [0.8], "FC")], [], View())
    assert [t["name"] for t in lines(figure)] == ["CNN", "FC"]
    assert lines(figure)[0]["y"] == pytest.approx([90, 95])
    bands = [t for t in figure["data"] if "fill" in t]
    assert bands[0]["y"] == pytest.approx([91, 96, 94, 89])
    assert [t["name"] for t in lines(drawn("loss", [run(0, [0.9])], [], View()))] == ["CNN, training", "CNN"]


def test_many_runs_have_neither_bands_nor_training_losses() -> None:
    many = [run(i, [0.9, 0.95]) for i in range(9)]
    assert len(drawn("accuracy", many, [], View())["data"]) == 9
    assert len(drawn("loss", many, [], View())["data"]) == 9


@pytest.mark.parametrize(
    ("axis", "x"), [("epoch", [1, 2]), ("seconds", [10, 20]), ("images", [1000, 2000]), ("flops", [1e9, 2e9])]
)
def test_axes(axis: Any, x: list[float]) -> None:
    for name in ("accuracy", "loss"):
        figure = drawn(name, [run(0, [0.9, 0.95])], [], View(axis))
        assert figure["data"][-1]["x"] == x


def test_a_run_without_flops_has_no_place_on_their_axis() -> None:
    figure = drawn("accuracy", [run(0, [0.9, 0.95], flops=None), run(1, [0.9])], [], View("flops"))
    assert [len(t["x"]) for t in lines(figure)] == [0, 1]


def test_a_smoothed_line_lies_over_the_measured_one() -> None:
    raw, soft = lines(drawn("accuracy", [run(0, [0.9, 0.8, 0.9])], [], View(smooth=0.5)))
    assert raw["y"] == pytest.approx([90, 80, 90])
    assert raw["opacity"] < 0.5
    assert soft["y"] == pytest.approx(curves.smoothed([90, 80, 90], 0.5))
    assert "smoothed" in soft["hovertemplate"]


def test_a_logarithmic_loss_leaves_out_what_has_no_logarithm() -> None:
    figure = drawn("loss", [RunCurve(0, "x", [point(1, 0.9, 0.0), point(2, 0.9, 0.1)])], [], View(log=True))
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert figure["data"][-1]["y"] == [0.1]
    assert drawn("accuracy", [run(0, [0.9])], [], View(log=True))["layout"]["yaxis"].get("type") != "log"


def test_at_most_500_points_a_line() -> None:
    figure = drawn("accuracy", [run(0, [0.5 + 0.4 * math.sin(i) for i in range(5000)])], [], View())
    assert all(len(t["x"]) <= 1000 if "fill" in t else len(t["x"]) <= 500 for t in figure["data"])


def test_the_mean_over_repeats_with_its_interval() -> None:
    rows = [[0.90, 0.95, 0.96], [0.92, 0.95], [0.97, 0.98]]
    group = Repeats(2, "CNN", [run(2, row).points for row in rows])
    figure = drawn("accuracy", [], [group], View())
    *singles, mean = lines(figure)
    assert [len(t["y"]) for t in singles] == [3, 2, 2]
    assert all(t["opacity"] < 1 and t["meta"]["color"] == "run-3" for t in singles)
    table = 100 * np.array([row[:2] for row in rows])
    assert mean["y"] == pytest.approx(table.mean(axis=0))  # only the epochs that all runs have
    low, high = stats.t.interval(0.95, 2, table[:, 1].mean(), stats.sem(table[:, 1]))
    (band,) = (t for t in figure["data"] if "fill" in t)
    assert band["y"][1] == pytest.approx(min(high, 100))
    assert band["y"][2] == pytest.approx(low)


def test_a_wide_band_does_not_flatten_the_lines() -> None:
    group = Repeats(0, "CNN", [run(0, [0.90]).points, run(0, [0.95]).points])
    low, high = drawn("accuracy", [], [group], View())["layout"]["yaxis"]["range"]
    assert low > 85
    assert high <= 100
    low, high = drawn("loss", [], [group], View(log=True))["layout"]["yaxis"]["range"]
    assert 10**low < 0.5 < 10**high


def test_a_mean_loss_of_zero_does_not_break_a_logarithmic_axis() -> None:
    points = [point(1, 0.9, 0.5), point(2, 0.9, 0.0)]
    figure = drawn("loss", [], [Repeats(0, "CNN", [points, points])], View(log=True))
    assert figure["layout"]["yaxis"]["range"] == pytest.approx([math.log10(0.5 / 1.5), math.log10(0.5 * 1.5)])
    without = drawn("loss", [], [Repeats(0, "CNN", [points[1:], points[1:]])], View(log=True))
    assert "range" not in without["layout"]["yaxis"]


def test_last_and_best() -> None:
    points = run(0, [0.9, 0.97, 0.97, 0.95]).points
    last, best = curves.best_or_last(points, "last"), curves.best_or_last(points, "best")
    assert last
    assert best
    assert (last.epoch, best.epoch) == (4, 2)
    assert curves.best_or_last([], "best") is None
