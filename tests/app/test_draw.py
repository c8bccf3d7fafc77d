"""Charts: round ticks, SVG that escapes what people typed, the trainer's schedules, figures as JSON and as SVG."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest

from app.draw.compare import DifferenceStrips, ForestRow, SeedRow, forest_plot, seeds_chart
from app.draw.figures import (
    EpochPoint,
    Figure,
    Line,
    RunCurve,
    accuracy_figure,
    axes_by,
    hover,
    log_ticks,
    plotly_json,
    step_figure,
)
from app.draw.form import ScheduleCurve, learning_rates, net_chart, schedule_chart
from app.draw.markers import colour_of, dash_of, legend_marker, mark, marker, marker_of
from app.draw.printed import figure_drawing
from app.draw.small import scale_of
from app.draw.svg import nice_step, ticks
from trainer import schedule
from trainer.config import RunConfig


def svg(drawing: Any) -> ET.Element:
    return ET.fromstring(drawing.__html__())


def texts(element: ET.Element) -> list[str]:
    return [node.text or "" for node in element.iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.03, [0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03]),
        (-3.2, 11, [-2.5, 0, 2.5, 5, 7.5, 10]),
        (84, 96, [84, 86, 88, 90, 92, 94, 96]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected
    assert nice_step(0) == 1


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("total", [1, 7, 938])
def test_the_schedule_is_the_trainers(name: Any, total: int) -> None:
    config = RunConfig(dataset="mnist", model="cnn", schedule=name, learning_rate=0.1, peak_at=0.3)
    expected = schedule.learning_rates(config, total)
    points = learning_rates(config, total)
    assert points[0][0] == 1
    assert points[-1][0] == total
    assert [rate for _step, rate in points] == [expected(int(step)) for step, _rate in points]
    if name == "one_cycle":
        assert max(round(0.3 * total), 1) in [step for step, _rate in points]


def test_schedule_chart() -> None:
    configs = [RunConfig(dataset="mnist", model="cnn", schedule="cosine", learning_rate=rate) for rate in (0.03, 0.01)]
    curves = [
        ScheduleCurve(i, str(config.learning_rate), learning_rates(config, 4690)) for i, config in enumerate(configs)
    ]
    pair = schedule_chart(curves, steps_per_epoch=938, total_steps=4690)
    wide = texts(svg(pair.wide))
    assert {"0.03", "938", "4,690", "step (938 per epoch)"} <= set(wide)
    assert len(list(svg(pair.narrow).iter("polyline"))) == 2
    assert pair.__html__().count("<svg") == 2


def test_the_net_in_proportion() -> None:
    drawing = net_chart([[1, 28, 28], [6, 24, 24], [96], [10]])
    assert texts(svg(drawing)) == ["1 × 28²", "6 × 24²", "96", "10"]
    assert len(list(svg(drawing).iter("rect"))) == 1 + 6 + 1 + 1
    assert "96" in drawing.label


def test_the_forest_plot_names_both_sides_and_escapes_them() -> None:
    rows = [
        ForestRow("These two nets", "seed 0", 4.83, 4.34, 5.34, 0),
        ForestRow("The two recipes", "5 seeds each", 7.89, 5.6, 10.19),
    ]
    pair = forest_plot(rows, margin=0.5, left='<b>F & "c"</b>', right="CNN")
    wide = svg(pair.wide)
    assert {'<b>F & "c"</b> better ←', "→ CNN better", "+4.83 points", "+5.60 to +10.19"} <= set(texts(wide))
    assert [g.get("class") for g in wide.iter("g")] == ["r1", "r5"]
    assert "±0.5: too small to matter" in texts(svg(pair.narrow))
    assert "+4.34 to +5.34" in pair.wide.label


def test_a_name_without_room_is_left_out() -> None:
    rows = [ForestRow("These two nets", "", 24.0, 13.0, 35.0, 0)]
    narrow = texts(svg(forest_plot(rows, margin=0.5, left="a name that is long", right="CNN").narrow))
    assert "→ CNN better" in narrow
    assert not any("←" in text for text in narrow)


def test_seeds_are_marks_and_whiskers_stay_inside() -> None:
    row = SeedRow(1, "FC", [95.0, 97.0], 96.0, 83.3, 108.7)
    drawing = seeds_chart([row], caption="test accuracy, %").wide
    found = svg(drawing)
    assert len([r for r in found.iter("rect") if r.get("class") == "pt open"]) == 2
    whisker = next(p.get("d") or "" for p in found.iter("path") if p.get("class") == "ci")
    assert float(whisker.split("H")[1].split("M")[0]) <= 496
    assert "83.30 to 108.70" in texts(found)


@pytest.mark.parametrize("index", range(8))
def test_each_run_has_a_mark(index: int) -> None:
    assert ET.fromstring(marker(index, 10, 10)).tag in ("circle", "rect", "path")
    assert ET.fromstring(legend_marker(index)).tag in ("circle", "rect", "path")


def test_a_mark_has_the_colour_and_the_marker_of_its_run() -> None:
    ninth = ET.fromstring(mark(8))
    assert ninth.get("class") == "mark r1"
    assert ET.tostring(ninth[0]) == ET.tostring(ET.fromstring(legend_marker(1)))


# Figures -------------------------------------------------------------------------------------------------------------


def curve(index: int = 0, name: str = "CNN", epochs: int = 2) -> RunCurve:
    points = [
        EpochPoint(e, 10.0 * e, 60_000 * e, 0.9 + e / 100, (0.89 + e / 100, 0.91 + e / 100), 0.8, 0.2 / e, 0.4)
        for e in range(1, epochs + 1)
    ]
    return RunCurve(index, name, points)


def test_accuracy_figure() -> None:
    figure = plotly_json(accuracy_figure(curve(0), last_epoch=2))
    json.dumps(figure, allow_nan=False)
    (band,) = (t for t in figure["data"] if t.get("fill"))
    training, test = (t for t in figure["data"] if not t.get("fill"))
    assert [t["meta"]["color"] for t in (training, test)] == ["ink-3", "run-1"]
    assert test["y"] == pytest.approx([91, 92])
    assert training["y"] == [80, 80]
    assert band["y"] == pytest.approx([92, 93, 91, 90])
    assert figure["layout"]["xaxis"]["dtick"] == 1


def test_a_run_on_its_way_keeps_room_for_its_epochs() -> None:
    figure = plotly_json(accuracy_figure(curve(epochs=1), last_epoch=5))
    assert figure["layout"]["xaxis"]["range"] == [0.8, 5.2]
    assert plotly_json(accuracy_figure(RunCurve(0, "x", []), last_epoch=5))["data"][0]["x"] == []


def test_fifty_runs_differ_in_colour_or_marker() -> None:
    looks = {(colour_of(i), marker_of(i)) for i in range(64)}
    assert len(looks) == 64
    assert [marker_of(i) for i in range(8)] == [dash_of(i) for i in range(8)] == list(range(8))
    figure = plotly_json(Figure([Line(i, "x", [], []) for i in range(50)], axes_by("epoch")))
    traces = figure["data"]
    assert len({(t["meta"]["color"], t["marker"]["symbol"]) for t in traces}) == 50


def test_a_name_can_not_be_markup_beside_the_pointer() -> None:
    assert hover("<i>&", "%{y}", "flops") == "<b>&lt;i>&amp;</b> %{x:.3~s}: %{y}<extra></extra>"


def test_a_figure_as_svg() -> None:
    figure = accuracy_figure(curve(1, epochs=3), last_epoch=3)
    drawn = svg(figure_drawing(figure, "accuracy"))
    assert {"1", "2", "3", "epoch"} <= set(texts(drawn))
    assert "1.5" not in texts(drawn)
    assert [g.get("class") for g in drawn.findall("g")] == ["r2", "faint", "r2"]
    assert len(list(drawn.iter("polygon"))) == 1
    line = list(drawn.iter("polyline"))[-1].get("points") or ""
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert heights == sorted(heights, reverse=True)  # a rising accuracy goes up
    assert len([r for r in drawn.iter("rect") if r.get("class") == "pt"]) == 3


def test_a_logarithmic_figure_as_svg() -> None:
    axes = replace(axes_by("flops"), y_ticks=log_ticks([0.01, 1.0]))
    figure = Figure([Line(0, "x", [1e12, 2e12, 3e12], [1.0, 0.1, 0.01])], axes)
    drawn = svg(figure_drawing(figure, "loss"))
    assert {"1T", "2T", "3T", "0.01", "0.1", "1"} <= set(texts(drawn))
    line = next(drawn.iter("polyline")).get("points") or ""
    a, b, c = (float(point.split(",")[1]) for point in line.split())
    assert b - a == pytest.approx(c - b, abs=0.2)


def test_strips_share_one_scale() -> None:
    strips = DifferenceStrips.around([(-1.0, 3.0), (0.0, 0.2)], 0.5)
    row = svg(strips.row(1.0, (-1.0, 3.0), 9))
    assert row.get("aria-label") == "+1.00, −1.00 to +3.00"
    assert [g.get("class") for g in row.iter("g")] == ["r2"]
    assert "0" in texts(svg(strips.head()))
    zero = [p.get("d") for p in row.iter("path") if p.get("class") == "zero"]
    assert zero == [p.get("d") for p in svg(strips.row(0.1, (0.0, 0.2), None)).iter("path") if p.get("class") == "zero"]


def test_step_figure_leaves_out_what_a_logarithm_can_not_show() -> None:
    figure = plotly_json(
        step_figure([1, 101, 201], [2.3, 0.0, float("inf")], curve(), steps_per_epoch=938, total_steps=1876)
    )
    json.dumps(figure, allow_nan=False)
    assert figure["data"][0]["x"] == [1]
    assert figure["data"][1]["x"] == [938, 1876]
    assert figure["layout"]["yaxis"]["type"] == "log"


@pytest.mark.parametrize(("low", "high"), [(0.413, 0.98), (0.6, 0.99), (0.0, 1.0), (0.881, 0.963), (0.9501, 0.9502)])
def test_the_tick_of_a_scale_keeps_its_distance_from_both_ends(low: float, high: float) -> None:
    scale = scale_of([(low, high)])
    margin = (scale.high - scale.low) / 5
    assert scale.low + margin <= scale.tick <= scale.high - margin
