"""Figures of curves over epochs, and their JSON for plotly.js. ``app.draw.printed`` draws the same figures as SVG.

Figures name colours by token ("run-1"); static/charts.js replaces them by colours and draws again when the theme changes.
Nothing here reads runs: callers bring the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from app.draw import svg
from app.draw.markers import PLOTLY_DASHES, PLOTLY_SYMBOLS, colour_of, dash_of, marker_of
from app.words import between
from trainer.i18n import _

Axis = Literal["epoch", "seconds", "images", "flops"]
_X_FORMATS: dict[Axis, str] = {"epoch": ",~r", "seconds": ",~r", "images": ",~r", "flops": ".3~s"}


# What a figure shows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochPoint:
    """What curves show of one epoch. Accuracies are fractions; ``interval`` is that of the test accuracy."""

    epoch: int
    seconds: float  # of training, from the start of the run
    images: int  # training images seen from the start of the run
    test_accuracy: float
    interval: tuple[float, float]
    train_accuracy: float
    test_loss: float
    train_loss: float
    flops: float | None = None  # of training, from the start of the run; None where they were not recorded

    def at(self, axis: Axis) -> float | None:
        """The position on a horizontal axis."""
        match axis:
            case "epoch":
                return float(self.epoch)
            case "seconds":
                return self.seconds
            case "images":
                return float(self.images)
            case "flops":
                return self.flops


@dataclass(frozen=True)
class RunCurve:
    """The epochs of one run, and its number on the page."""

    index: int
    name: str
    points: list[EpochPoint] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """A line of a figure, in the colour of a run, or in grey and dotted for what is secondary."""

    index: int | None  # of the run on the page; None for grey
    name: str
    x: Sequence[float]
    y: Sequence[float]
    hover: str | None = None  # plotly.js's template of what the pointer shows; None for nothing
    text: Sequence[str] | None = None  # one for each point, for ``hover``
    has_markers: bool = True
    width: float = 2
    dash: str | None = None  # None for the run's own
    opacity: float | None = None

    @property
    def heights(self) -> Sequence[float]:
        return self.y

    @property
    def dashes(self) -> str:
        """The dash as plotly.js names it."""
        return self.dash or ("2px,3px" if self.index is None else PLOTLY_DASHES[dash_of(self.index)])


@dataclass(frozen=True)
class Band:
    """The area between two lines, in the colour of a run."""

    index: int
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]

    @property
    def heights(self) -> Sequence[float]:
        return [*self.high, *reversed(self.low)]


@dataclass(frozen=True)
class Axes:
    """Both axes. Without a range an axis fits the lines."""

    x_title: str
    x_format: str
    x_range: tuple[float, float] | None = None
    last_epoch: int = 0  # of an axis that counts epochs; else 0
    y_range: tuple[float, float] | None = None
    y_ticks: Sequence[float] | None = None  # of a logarithmic axis; None for a linear one
    from_zero: bool = False

    @property
    def epoch_ticks(self) -> tuple[int, int] | None:
        """First tick and step of an axis that counts epochs."""
        if not self.last_epoch:
            return None
        return (0 if self.last_epoch > 10 else 1), max(1, round(svg.nice_step(self.last_epoch, 10)))


@dataclass(frozen=True)
class Figure:
    """Lines and bands in the order in which plotly.js draws them, and their axes."""

    curves: Sequence[Line | Band]
    axes: Axes

    @property
    def lines(self) -> list[Line]:
        return [curve for curve in self.curves if isinstance(curve, Line)]

    @property
    def bands(self) -> list[Band]:
        return [curve for curve in self.curves if isinstance(curve, Band)]


def axis_title(axis: Axis) -> str:
    """What is counted along the axis."""
    titles: dict[Axis, str] = {
        "epoch": _("epoch"),
        "seconds": _("seconds of training"),
        "images": _("training images seen"),
        "flops": _("training FLOPs, nominal"),
    }
    return titles[axis]


def axes_by(axis: Axis, *, last_epoch: int = 0, x_range: tuple[float, float] | None = None) -> Axes:
    """Axes with this quantity along the horizontal one."""
    return Axes(axis_title(axis), _X_FORMATS[axis], x_range=x_range, last_epoch=last_epoch)


def log_ticks(values: Iterable[float]) -> list[float]:
    """Round numbers for a logarithmic axis over ``values``; more for a narrow range, so that at least two are visible."""
    positive = [value for value in values if value > 0]
    ratio = max(positive) / min(positive) if positive else 1.0
    digits = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if ratio < 4 else (1, 2, 5) if ratio < 40 else (1,)
    return [digit * 10.0**power for power in range(-8, 10) for digit in digits]


def hover(name: str, value: str, axis: Axis = "epoch") -> str:
    """What the pointer shows, as a template of plotly.js: the name as it was typed, the position, the value."""
    escaped = name.replace("&", "&amp;").replace("<", "&lt;")
    return f"<b>{escaped}</b> %{{x:{_X_FORMATS[axis]}}}: {value}<extra></extra>"


# Figures of one run --------------------------------------------------------------------------------------------------


def accuracy_figure(curve: RunCurve, *, last_epoch: int) -> Figure:
    """Test accuracy in percent with the band of its 95 % interval, and the accuracy during training, dotted.

    The axis ends at ``last_epoch``, which a run that still trains has not reached.
    """
    x = [float(point.epoch) for point in curve.points]
    low, high = ([100 * point.interval[i] for point in curve.points] for i in (0, 1))
    training = [100 * point.train_accuracy for point in curve.points]
    test = [100 * point.test_accuracy for point in curve.points]
    text = [between(f"{a:.2f}", f"{b:.2f}") for a, b in zip(low, high, strict=True)]
    curves: list[Line | Band] = [Line(None, _("training"), x, training, hover(_("training"), "%{y:.2f} %"))]
    if x:
        curves.append(Band(curve.index, x, low, high))
    curves.append(Line(curve.index, _("test"), x, test, hover(_("test"), "%{y:.2f} % (%{text})"), text))
    axes = axes_by("epoch", last_epoch=last_epoch, x_range=(0.8, last_epoch + 0.2) if last_epoch > 1 else None)
    return Figure(curves, axes if x else replace(axes, x_range=(0.5, last_epoch + 0.5), y_range=(0, 100)))


def step_figure(
    steps: Sequence[int], losses: Sequence[float], curve: RunCurve, *, steps_per_epoch: int, total_steps: int
) -> Figure:
    """Loss by step on a logarithmic axis: that of single training batches as a thin line, the test loss as markers."""
    shown = [(float(step), loss) for step, loss in zip(steps, losses, strict=True) if loss > 0 and math.isfinite(loss)]
    training = Line(
        None,
        _("training"),
        [step for step, _loss in shown],
        [loss for _step, loss in shown],
        hover(_("training"), "%{y:.4f}"),
        has_markers=False,
        width=1.25,
        dash="solid",
    )
    points = [point for point in curve.points if point.test_loss > 0]
    x = [float(point.epoch * steps_per_epoch) for point in points]
    test = Line(curve.index, _("test"), x, [point.test_loss for point in points], hover(_("test"), "%{y:.4f}"))
    y = [*training.y, *test.y] or [0.01, 10.0]
    axes = Axes(
        _("step ({n} per epoch)").format(n=f"{steps_per_epoch:,}") if steps_per_epoch else _("step"),
        _X_FORMATS["epoch"],
        x_range=(0, total_steps or 1),
        y_ticks=log_ticks(y),
    )
    if min(y) == max(y):  # plotly.js would show two decades, with too many ticks
        axes = replace(axes, y_range=(y[0] / 2, y[0] * 2))
    elif not shown and not points:
        axes = replace(axes, y_range=(0.01, 10.0))
    return Figure([training, test], axes)


# As JSON for plotly.js -----------------------------------------------------------------------------------------------


def plotly_json(figure: Figure) -> dict[str, Any]:
    """The figure as plotly.js takes it, with tokens in place of colours."""
    return {
        "data": [_plotly_line(curve) if isinstance(curve, Line) else _plotly_band(curve) for curve in figure.curves],
        "layout": _plotly_layout(figure.axes),
    }


def _plotly_line(line: Line) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers" if line.has_markers else "lines",
        "cliponaxis": False,
        "name": line.name,
        "x": list(line.x),
        "y": list(line.y),
        "meta": {"color": _token(line.index), "index": line.index},
        "line": {"width": line.width, "dash": line.dashes},
        "marker": {
            "symbol": "circle-open" if line.index is None else PLOTLY_SYMBOLS[marker_of(line.index)],
            "size": 7,
            "line": {"width": 1.5},
        },
    }
    if line.text is not None:
        trace["text"] = list(line.text)
    if line.opacity is not None:
        trace["opacity"] = line.opacity
    return trace | ({"hoverinfo": "skip"} if line.hover is None else {"hovertemplate": line.hover})


def _token(index: int | None) -> str:
    return "ink-3" if index is None else f"run-{colour_of(index)}"


def _plotly_band(band: Band) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*band.x, *reversed(band.x)],
        "y": band.heights,
        "fill": "toself",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "meta": {"color": _token(band.index), "fill": 0.14},
    }


def _plotly_layout(axes: Axes) -> dict[str, Any]:
    x_axis: dict[str, Any] = {"title": {"text": axes.x_title}, "tickformat": axes.x_format}
    if axes.x_range:
        x_axis["range"] = list(axes.x_range)
    if axes.epoch_ticks:
        x_axis["tick0"], x_axis["dtick"] = axes.epoch_ticks
    y_axis: dict[str, Any] = {"tickformat": ",~r"}
    if axes.y_ticks is not None:
        ticktext = [f"{value:g}" for value in axes.y_ticks]
        y_axis = {"type": "log", "tickvals": list(axes.y_ticks), "ticktext": ticktext}
    if axes.from_zero:
        y_axis["rangemode"] = "tozero"
    if axes.y_range:  # plotly.js wants decimal logarithms for a logarithmic axis
        y_axis["range"] = [math.log10(end) if axes.y_ticks is not None else end for end in axes.y_range]
    return {"xaxis": x_axis, "yaxis": y_axis, "uirevision": "kept", "hovermode": "closest"}
