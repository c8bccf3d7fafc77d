"""The curves of several runs as figures over epochs, time, images or FLOPs: smoothed, thinned or averaged over repeats.

These are pure functions of epochs. ``app.draw.figures`` turns figures into JSON, ``app.draw.printed`` into SVG.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from app.draw.figures import Axes, Axis, Band, EpochPoint, Figure, Line, RunCurve, axes_by, hover, log_ticks
from app.runs.sweeps import without_seed
from app.schemas import EpochOut
from app.statistics import t_interval, t_quantile, wilson_interval
from app.store.tables import Run
from app.store.thinning import thin
from app.words import between
from trainer.i18n import _

MOST_DETAILED = 8  # curves up to which bands and training losses are still legible
MOST_MARKED = 60  # points up to which each one has a marker
LARGEST_SMOOTHING = 0.99
FigureName = Literal["accuracy", "loss"]


@dataclass(frozen=True)
class View:
    """Options of the curves. ``smooth`` (0 to 0.99) is the weight of earlier values; ``log`` is for the loss axis."""

    axis: Axis = "epoch"
    smooth: float = 0.0
    log: bool = False


@dataclass(frozen=True)
class Repeats:
    """The repeats of a recipe: its position on the page, its name, and the epochs of each of its 2 or more runs."""

    index: int
    name: str
    runs: list[list[EpochPoint]]


def points_of(epochs: Sequence[EpochOut]) -> list[EpochPoint]:
    """Convert the epochs of a run to points of a curve, with the Wilson interval of each accuracy."""
    if not epochs:
        return []
    low, high = wilson_interval([e.test_correct for e in epochs], [e.test_total for e in epochs])
    return [
        EpochPoint(
            epoch=epoch.epoch,
            seconds=round(epoch.train_seconds, 3),
            images=epoch.images or 0,
            interval=(a, b),
            test_accuracy=epoch.test_accuracy,
            train_accuracy=epoch.train_accuracy,
            test_loss=epoch.test_loss,
            train_loss=epoch.train_loss,
            flops=epoch.total_flops,
        )
        for epoch, a, b in zip(epochs, low.tolist(), high.tolist(), strict=True)
    ]


def curves_of(
    runs: Sequence[Run], epochs: Mapping[str, Sequence[EpochOut]], repeats: Sequence[Run] = ()
) -> tuple[list[RunCurve], list[Repeats]]:
    """One curve per run, or one per recipe that has finished repeats with other seeds.

    ``repeats`` are all runs of the groups, oldest first, where means over them are wanted; the newest run of each seed
    counts. ``epochs`` holds the epochs of all these runs by id.
    """
    by_seed: dict[str, dict[int, Run]] = {}
    for run in repeats:
        if run.status == "finished" and epochs.get(run.id):
            by_seed.setdefault(run.group, {})[run.seed] = run
    several = {group: list(seeds.values()) for group, seeds in by_seed.items() if len(seeds) > 1}
    singles, groups = [], {}
    for place, run in enumerate(runs):
        if run.group not in several:
            singles.append(RunCurve(place, run.name or run.id, points_of(epochs[run.id])))
        elif run.group not in groups:
            members = [points_of(epochs[one.id]) for one in several[run.group]]
            groups[run.group] = Repeats(place, without_seed(run.name) or run.name or run.id, members)
    return singles, list(groups.values())


# Numbers -------------------------------------------------------------------------------------------------------------


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """The exponential moving average: 1 - ``weight`` of each value plus ``weight`` of the average before it.

    It is divided by 1 - weight^t to correct the bias of the first values: D. P. Kingma, J. Ba (2015), ICLR, section 3.
    """
    average, result = 0.0, []
    for step, value in enumerate(values, 1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**step))
    return result


def best_or_last(points: Sequence[EpochPoint], which: Literal["last", "best"]) -> EpochPoint | None:
    """The last epoch, or the first one with the highest test accuracy; None if there is no epoch yet."""
    if not points:
        return None
    return points[-1] if which == "last" else max(points, key=lambda point: point.test_accuracy)


@dataclass(frozen=True)
class LegendLine:
    """A curve with its values at its last or best epoch; ``seeds`` > 1 and an interval where it is a mean."""

    place: int
    name: str
    accuracy: float | None
    interval: tuple[float, float] | None
    loss: float | None
    seeds: int = 1


def legend(singles: Sequence[RunCurve], groups: Sequence[Repeats], which: Literal["last", "best"]) -> list[LegendLine]:
    """The curves in the order of their numbers, with their values at the last or best epoch."""
    lines = []
    for curve in singles:
        point = best_or_last(curve.points, which)
        if point is None:
            lines.append(LegendLine(curve.index, curve.name, None, None, None))
        else:
            lines.append(LegendLine(curve.index, curve.name, point.test_accuracy, point.interval, point.test_loss))
    for group in groups:
        points = [point for run in group.runs if (point := best_or_last(run, which))]
        accuracies, losses = [point.test_accuracy for point in points], [point.test_loss for point in points]
        n = len(points)
        lines.append(
            LegendLine(group.index, group.name, sum(accuracies) / n, t_interval(accuracies), sum(losses) / n, n)
        )
    return sorted(lines, key=lambda line: line.place)


# Figures -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Series:
    """The quantity that a figure shows, and the format of its values."""

    value: Callable[[EpochPoint], float]
    format: str
    bounds: tuple[float, float]


_ACCURACY = _Series(lambda point: 100 * point.test_accuracy, "%{y:.2f} %", (0.0, 100.0))
_LOSS = _Series(lambda point: point.test_loss, "%{y:.4f}", (0.0, float("inf")))
_TRAIN_LOSS = _Series(lambda point: point.train_loss, "%{y:.4f}", (0.0, float("inf")))
Values = tuple[list[float], list[float]]  # x and y


def figure(name: FigureName, curves: Sequence[RunCurve], repeats: Sequence[Repeats], view: View) -> Figure:
    """A figure of test accuracy in percent or of test loss, for single runs and for repeats.

    With up to 8 runs it also has bands with the 95 % interval of each accuracy, or the training loss as dotted lines.
    """
    series = _ACCURACY if name == "accuracy" else _LOSS
    is_log = view.log and name == "loss"
    detailed = len(curves) + len(repeats) <= MOST_DETAILED
    drawn: list[Line | Band] = []
    for curve in curves:
        if detailed:
            drawn += _details(name, curve, view, is_log)
        drawn += _lines(curve.index, curve.name, _values(curve.points, series, view.axis, is_log), series, view)
    for group in repeats:
        drawn += _mean(group, series, view, is_log)
    return Figure(drawn, _axes(name, drawn, series, view, is_log, has_repeats=bool(repeats)))


def _axes(
    name: FigureName, drawn: Sequence[Line | Band], series: _Series, view: View, is_log: bool, *, has_repeats: bool
) -> Axes:
    heights = [y for curve in drawn for y in curve.heights]
    last = int(max((x for curve in drawn for x in curve.x), default=1)) if view.axis == "epoch" else 0
    axes = axes_by(view.axis, last_epoch=last)
    if is_log:
        axes = replace(axes, y_ticks=log_ticks(heights))
    elif name == "loss":
        axes = replace(axes, from_zero=True)
    if name == "accuracy" and not heights:
        return replace(axes, y_range=(0, 100))
    return replace(axes, y_range=_range(drawn, series, is_log)) if has_repeats and heights else axes


def _values(points: Sequence[EpochPoint], series: _Series, axis: Axis, is_log: bool) -> Values:
    """The x and y values of the epochs that have both and that the axes can show."""
    shown = [
        (x, y)
        for point in points
        if (x := point.at(axis)) is not None and ((y := series.value(point)) > 0 or not is_log)
    ]
    return [x for x, _y in shown], [y for _x, y in shown]


def _details(name: FigureName, curve: RunCurve, view: View, is_log: bool) -> list[Line | Band]:
    """The details below the line of a run: the interval of its accuracy, or its training loss."""
    if name == "loss":
        title = _("{name}, training").format(name=curve.name)
        x, y = _values(curve.points, _TRAIN_LOSS, view.axis, is_log)
        y = smoothed(y, view.smooth) if view.smooth else y
        line = _thinned(curve.index, title, x, y, hover(title, _TRAIN_LOSS.format, view.axis))
        return [replace(line, has_markers=False, width=1.25, dash="1px,3px")]
    known = [point for point in curve.points if point.at(view.axis) is not None]
    if not known or view.smooth:
        return []
    chosen = [known[i] for i in thin([point.test_accuracy for point in known])]
    low, high = ([100 * point.interval[i] for point in chosen] for i in (0, 1))
    return [Band(curve.index, [point.at(view.axis) or 0.0 for point in chosen], low, high)]


def _lines(index: int, name: str, values: Values, series: _Series, view: View) -> list[Line | Band]:
    """The lines of a run. If it is smoothed, the measured values stay faintly visible below the line."""
    x, y = values
    measured = _thinned(index, name, x, y, hover(name, series.format, view.axis))
    if not view.smooth:
        return [replace(measured, has_markers=len(measured.x) <= MOST_MARKED)]
    title = _("{name}, smoothed").format(name=name)
    soft = _thinned(index, name, x, smoothed(y, view.smooth), hover(title, series.format, view.axis))
    return [replace(measured, has_markers=False, opacity=0.3, hover=None), replace(soft, has_markers=False)]


def _thinned(index: int, name: str, x: Sequence[float], y: Sequence[float], shown: str | None) -> Line:
    kept = thin(y)
    return Line(index, name, _at(x, kept), _at(y, kept), shown)


def _at(values: Sequence[float], kept: Sequence[int]) -> list[float]:
    return [values[i] for i in kept]


def _mean(group: Repeats, series: _Series, view: View, is_log: bool) -> list[Line | Band]:
    """The single runs as thin lines, their mean over the epochs that all have, and its 95 % t interval as a band."""
    singles: list[Line | Band] = []
    for points in group.runs:
        x, y = _values(points, series, view.axis, is_log)
        line = _thinned(group.index, group.name, x, smoothed(y, view.smooth) if view.smooth else y, None)
        singles.append(replace(line, has_markers=False, width=1, dash="solid", opacity=0.45))
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
    line = Line(group.index, group.name, x, mean, hover(title, f"{series.format} (%{{text}})", view.axis), text)
    return [Band(group.index, x, low, high), *singles, line]


def _mean_line(
    runs: Sequence[Sequence[EpochPoint]], series: _Series, view: View
) -> tuple[list[float], list[float], list[float]]:
    """The x values, the mean and half the width of its interval, for the epochs that every run has."""
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


def _range(drawn: Sequence[Line | Band], series: _Series, is_log: bool) -> tuple[float, float] | None:
    """The range of the vertical axis, from the lines only: a band over two seeds can be 20 times wider."""
    lines = [y for curve in drawn if isinstance(curve, Line) for y in curve.heights if y > 0 or not is_log]
    bands = [y for curve in drawn if isinstance(curve, Band) for y in curve.heights]
    if not lines:
        return None
    low, high = min(lines), max(lines)
    if is_log:
        return low / 1.5, high * 1.5
    room = (high - low) * 0.6 or 1.0
    low, high = max(low - room, min([low, *bands])), min(high + room, max([high, *bands]))
    pad = (high - low) * 0.05
    return max(low - pad, series.bounds[0]), min(high + pad, series.bounds[1])
