"""The curves of several runs: by epoch, time, images or FLOPs, smoothed, thinned, or as means over repeats, as figures.

Pure over epochs. How a figure is made of lines, and drawn as SVG, is in ``app.draw.charts``; static/charts.js colours it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from app.draw import charts
from app.draw.charts import EpochPoint, RunCurve
from app.schemas import EpochOut
from app.statistics import t_quantile, wilson_interval
from app.store.thinning import thin
from app.words import between
from trainer.i18n import _

MOST_DETAILED = 8  # curves beside which bands and training losses can still be told apart
LARGEST_SMOOTHING = 0.99
Axis = Literal["epoch", "seconds", "images", "flops"]
Figure = Literal["accuracy", "loss"]


@dataclass(frozen=True)
class View:
    """How curves are shown. ``smooth`` 0 to 0.99 is the weight of what came before; ``log`` is the loss axis."""

    axis: Axis = "epoch"
    smooth: float = 0.0
    log: bool = False


@dataclass(frozen=True)
class Repeats:
    """The repeats of one recipe: its number on the page, its name, the epochs of each run [S >= 2]."""

    index: int
    name: str
    runs: list[list[EpochPoint]]


def points_of(epochs: Sequence[EpochOut]) -> list[EpochPoint]:
    """The epochs of a run as points of a curve, with Wilson's interval of each accuracy."""
    if not epochs:
        return []
    low, high = wilson_interval([e.test_correct for e in epochs], [e.test_total for e in epochs])
    return [
        EpochPoint(
            epoch=epoch.epoch, seconds=round(epoch.train_seconds, 3), images=epoch.images or 0, interval=(a, b),
            test_accuracy=epoch.test_accuracy, train_accuracy=epoch.train_accuracy, test_loss=epoch.test_loss,
            train_loss=epoch.train_loss, flops=epoch.total_flops,
        )
        for epoch, a, b in zip(epochs, low.tolist(), high.tolist(), strict=True)
    ]  # fmt: skip


# Numbers -------------------------------------------------------------------------------------------------------------


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average: each value counts 1 - weight, what came before it ``weight``.

    Divided by 1 - weight^t, so that it doesn't start from zero: D. P. Kingma, J. Ba (2015), ICLR, section 3.
    """
    average, result = 0.0, []
    for step, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**step))
    return result


def best_or_last(points: Sequence[EpochPoint], which: Literal["last", "best"]) -> EpochPoint | None:
    """The newest epoch, or the first one of the highest test accuracy; None before there is one."""
    if not points:
        return None
    return points[-1] if which == "last" else max(points, key=lambda point: point.test_accuracy)


# Figures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Series:
    """What a figure shows of an epoch, and how its values read."""

    value: Callable[[EpochPoint], float]
    format: str
    bounds: tuple[float, float]


_ACCURACY = _Series(lambda point: 100 * point.test_accuracy, "%{y:.2f} %", (0.0, 100.0))
_LOSS = _Series(lambda point: point.test_loss, "%{y:.4f}", (0.0, float("inf")))
_TRAIN_LOSS = _Series(lambda point: point.train_loss, "%{y:.4f}", (0.0, float("inf")))
Line = tuple[list[float], list[float]]


def figure(name: Figure, curves: Sequence[RunCurve], repeats: Sequence[Repeats], view: View) -> dict[str, Any]:
    """Test accuracy in per cent or test loss of single runs and of repeats, as JSON for plotly.js.

    Up to 8 runs show the band of each accuracy's 95 % interval and the training loss, dotted.
    """
    series = _ACCURACY if name == "accuracy" else _LOSS
    is_log = view.log and name == "loss"
    detailed = len(curves) + len(repeats) <= MOST_DETAILED
    traces: list[dict[str, Any]] = []
    for curve in curves:
        if detailed:
            traces += _beside(name, curve, view, is_log)
        traces += _line(curve.index, curve.name, _places(curve.points, series, view.axis, is_log), series, view)
    for group in repeats:
        traces += _mean(group, series, view, is_log)
    values = [y for trace in traces for y in trace["y"]]
    last = int(max((x for trace in traces for x in trace["x"]), default=1)) if view.axis == "epoch" else 0
    axes = charts.layout(view.axis, epochs=last, log_values=values if is_log else None)
    if name == "loss" and not is_log:
        axes["yaxis"]["rangemode"] = "tozero"
    if name == "accuracy" and not values:
        axes["yaxis"]["range"] = [0, 100]
    elif repeats and values:
        axes["yaxis"]["range"] = _range(traces, series, is_log)
    return {"data": traces, "layout": axes}


def _places(points: Sequence[EpochPoint], series: _Series, axis: str, is_log: bool) -> Line:
    """(x, y) of the epochs that have a place on both axes."""
    found = [
        (x, y)
        for point in points
        if (x := point.at(axis)) is not None and ((y := series.value(point)) > 0 or not is_log)
    ]
    return [x for x, _y in found], [y for _x, y in found]


def _beside(name: Figure, curve: RunCurve, view: View, is_log: bool) -> list[dict[str, Any]]:
    """What lies under the line of one run: the interval of its accuracy, or its training loss."""
    if name == "loss":
        title = _("{name}, training").format(name=curve.name)
        x, y = _places(curve.points, _TRAIN_LOSS, view.axis, is_log)
        y = smoothed(y, view.smooth) if view.smooth else y
        kept = thin(y)
        dotted = {"mode": "lines", "line": {"width": 1.25, "dash": "1px,3px"}}
        shown = charts.hover(title, _TRAIN_LOSS.format, view.axis)
        return [charts.trace(curve.index, title, _at(x, kept), _at(y, kept), hovertemplate=shown, **dotted)]
    known = [point for point in curve.points if point.at(view.axis) is not None]
    if not known or view.smooth:
        return []
    kept = thin([point.test_accuracy for point in known])
    chosen = [known[i] for i in kept]
    low, high = ([100 * point.interval[i] for point in chosen] for i in (0, 1))
    return [charts.band(curve.index, [point.at(view.axis) or 0.0 for point in chosen], low, high)]


def _line(index: int, name: str, line: Line, series: _Series, view: View) -> list[dict[str, Any]]:
    """One run; where it is smoothed, what was measured stays faintly visible under it."""
    x, y = line
    shown = charts.hover(name, series.format, view.axis)
    kept = thin(y)
    marks = "lines+markers" if len(kept) <= 60 else "lines"
    if not view.smooth:
        return [charts.trace(index, name, _at(x, kept), _at(y, kept), mode=marks, hovertemplate=shown)]
    raw = charts.trace(index, name, _at(x, kept), _at(y, kept), mode="lines", opacity=0.3, hoverinfo="skip")
    soft = smoothed(y, view.smooth)
    kept = thin(soft)
    title = _("{name}, smoothed").format(name=name)
    hover = charts.hover(title, series.format, view.axis)
    return [raw, charts.trace(index, name, _at(x, kept), _at(soft, kept), mode="lines", hovertemplate=hover)]


def _at(values: Sequence[float], kept: Sequence[int]) -> list[float]:
    return [values[i] for i in kept]


def _mean(group: Repeats, series: _Series, view: View, is_log: bool) -> list[dict[str, Any]]:
    """The single runs as thin lines, their mean over the epochs that all have, and its 95 % interval (t) as a band."""
    singles = []
    for points in group.runs:
        x, y = _places(points, series, view.axis, is_log)
        y = smoothed(y, view.smooth) if view.smooth else y
        kept = thin(y)
        thin_line = {"mode": "lines", "line": {"width": 1, "dash": "solid"}, "opacity": 0.45, "hoverinfo": "skip"}
        singles.append(charts.trace(group.index, group.name, _at(x, kept), _at(y, kept), **thin_line))
    x, mean, half = _mean_line(group.runs, series, view)
    if not x:
        return singles
    kept = thin(mean)
    x, mean, half = _at(x, kept), _at(mean, kept), _at(half, kept)
    floor = min(mean) / 10 if is_log else series.bounds[0]
    low = [max(m - h, floor) for m, h in zip(mean, half, strict=True)]
    high = [min(m + h, series.bounds[1]) for m, h in zip(mean, half, strict=True)]
    title = _("{name}, mean of {n} seeds").format(name=group.name, n=len(group.runs))
    digits = 2 if series is _ACCURACY else 4
    text = [between(f"{a:.{digits}f}", f"{b:.{digits}f}") for a, b in zip(low, high, strict=True)]
    shown = charts.hover(title, f"{series.format} (%{{text}})", view.axis)
    line = charts.trace(group.index, group.name, x, mean, text=text, hovertemplate=shown)
    return [charts.band(group.index, x, low, high), *singles, line]


def _mean_line(
    runs: Sequence[Sequence[EpochPoint]], series: _Series, view: View
) -> tuple[list[float], list[float], list[float]]:
    """x, mean and half of its interval, over the epochs that every run has."""
    common = sorted(set.intersection(*({point.epoch for point in points} for points in runs)))
    if not common:
        return [], [], []
    tables = [{point.epoch: point for point in points} for points in runs]
    rows = [[series.value(table[epoch]) for epoch in common] for table in tables]
    if view.smooth:
        rows = [smoothed(row, view.smooth) for row in rows]
    places = [[table[epoch].at(view.axis) for epoch in common] for table in tables]
    if any(place is None for row in places for place in row):
        return [], [], []
    y = np.array(rows)
    half = t_quantile(len(rows) - 1) * y.std(axis=0, ddof=1) / np.sqrt(len(rows))
    return np.array(places, np.float64).mean(axis=0).tolist(), y.mean(axis=0).tolist(), half.tolist()


def _range(traces: Sequence[dict[str, Any]], series: _Series, is_log: bool) -> list[float]:
    """The vertical axis from the lines; a band of two seeds, which may be 20 times as wide, must not flatten them.

    Decimal logarithms where the axis is logarithmic, as plotly.js wants them.
    """
    lines = [y for trace in traces if "fill" not in trace for y in trace["y"]]
    bands = [y for trace in traces if "fill" in trace for y in trace["y"]]
    low, high = min(lines), max(lines)
    if is_log:
        return [math.log10(low / 1.5), math.log10(high * 1.5)]
    room = (high - low) * 0.6 or 1.0
    low, high = max(low - room, min([low, *bands])), min(high + room, max([high, *bands]))
    pad = (high - low) * 0.05
    return [max(low - pad, series.bounds[0]), min(high + pad, series.bounds[1])]
