"""Drawings of the form of a new run: the learning rate over the steps, and the shapes that an image passes through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from app.draw import svg
from app.draw.markers import LINE_CLASSES, colour_of, dash_of
from app.draw.svg import Drawing, Point, ResponsiveDrawing
from app.words import axis_number
from trainer import schedule
from trainer.config import RunConfig
from trainer.i18n import _

_POINTS_PER_CURVE = 100
_MAP_SIDE = 53.2  # of the largest feature map
_BAR_HEIGHT = 69  # of the longest vector of features
_MIDDLE = 52.0  # height of the line on which all shapes are centred


# The schedule of the learning rate -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScheduleCurve:
    """The learning rate of one configuration as (step, rate), with its number for colour and dash, and its label."""

    index: int
    label: str
    points: list[Point]


def learning_rates(config: RunConfig, total_steps: int) -> list[Point]:
    """(step, learning rate) along a run, at about 100 steps; the peak of a one-cycle schedule is one of them."""
    steps = {1 + round(i * (total_steps - 1) / _POINTS_PER_CURVE) for i in range(_POINTS_PER_CURVE + 1)}
    if config.schedule == "one_cycle" and config.peak_at:
        steps.add(min(max(round(config.peak_at * total_steps), 1), total_steps))
    rate_at = schedule.learning_rates(config, total_steps)
    return [(float(step), rate_at(step)) for step in sorted(steps)]


def schedule_chart(curves: Sequence[ScheduleCurve], *, steps_per_epoch: int, total_steps: int) -> ResponsiveDrawing:
    """Learning rate over the steps of a run."""
    return ResponsiveDrawing(
        _schedule(curves, steps_per_epoch, total_steps, 820, "chart wide"),
        _schedule(curves, steps_per_epoch, total_steps, 340, "chart narrow"),
    )


def _schedule(curves: Sequence[ScheduleCurve], per_epoch: int, total: int, width: float, css: str) -> Drawing:
    left, right, top, bottom = 42.0, width - 14, 24.0, 116.0
    highest = float(f"{max((rate for curve in curves for _step, rate in curve.points), default=1.0):.3g}")
    marks = svg.ticks(0, highest, 4) or [0.0]
    highest = max(highest, marks[-1])
    x, y = svg.scale((0, total), (left, right)), svg.scale((0, highest), (bottom, top))
    label = _("Learning rate")
    parts = [svg.text(0, 11, label, "ttl")]
    for value in marks:
        parts.append(svg.horizontal(y(value), left, right, "grid"))
        parts.append(svg.text(left - 6, y(value) + 3.5, axis_number(value), "end"))
    parts.append(svg.horizontal(bottom, left, right, "axis"))
    for step in _epoch_ticks(per_epoch, total, 5 if width > 400 else 3):
        parts.append(svg.text(x(step), bottom + 15, f"{step:,}", "end" if step == total else "mid"))
    caption = _("step ({n} per epoch)").format(n=f"{per_epoch:,}")
    parts.append(svg.text(right, bottom + 30, caption, "end"))
    for curve in curves:
        line = svg.polyline([(x(step), y(rate)) for step, rate in curve.points], LINE_CLASSES[dash_of(curve.index)])
        parts.append(svg.group(f"r{colour_of(curve.index)}", [line]))
    return Drawing(width, 150, label, tuple(parts), css)


def _epoch_ticks(per_epoch: int, total: int, count: int) -> list[int]:
    """At most ``count`` ends of epochs and the last step; none so close to the last step that both would overlap."""
    epochs = max(round(total / per_epoch), 1)
    every = max(math.ceil(epochs / count), 1)
    steps = [per_epoch * epoch for epoch in range(0, epochs, every)]
    return [*(step for step in steps if step < total * 0.93 or step == 0), total]


# The net -------------------------------------------------------------------------------------------------------------


def net_chart(shapes: Sequence[Sequence[int]]) -> Drawing:
    """The shapes that an image passes through, in proportion: feature maps as stacked squares, vectors as bars."""
    names = [_shape_name(shape) for shape in shapes]
    label = _("the shapes an image passes through: {shapes}").format(shapes=", ".join(names))
    largest_map = max((max(shape[1:]) for shape in shapes if len(shape) == 3), default=1)
    longest = max((shape[0] for shape in shapes if len(shape) == 1), default=1)
    parts: list[Markup] = []
    x = 2.0
    for shape, name in zip(shapes, names, strict=True):
        drawn, width = _maps(shape, x, largest_map) if len(shape) == 3 else _vector(shape[0], x, longest)
        room = max(width, 6.2 * len(name))
        parts += [*drawn, svg.text(x + width / 2, 104, name, "mid")]
        x += max(width + 20, (width + room) / 2 + 8)
    return Drawing(max(x, 120), 110, label, tuple(parts), "chart net")


def _shape_name(shape: Sequence[int]) -> str:
    if len(shape) != 3:
        return f"{shape[0]:,}"
    side = f"{shape[1]}²" if shape[1] == shape[2] else f"{shape[1]} × {shape[2]}"
    return f"{shape[0]} × {side}"


def _maps(shape: Sequence[int], x: float, largest: int) -> tuple[list[Markup], float]:
    """At most six feature maps behind each other, and the width that they take."""
    count = min(shape[0], 6)
    height, width = (max(side / largest * _MAP_SIDE, 4.0) for side in shape[1:])
    top = _MIDDLE - (height + 2.2 * (count - 1)) / 2
    squares = [svg.rect(x + 2.5 * i, top + 2.2 * i, width, height, "map") for i in range(count)]
    return squares, width + 2.5 * (count - 1)


def _vector(features: int, x: float, longest: int) -> tuple[list[Markup], float]:
    """A bar whose height grows with the root of the number of features, and its width."""
    height = max(math.sqrt(features / longest) * _BAR_HEIGHT, 6.0)
    return [svg.rect(x, _MIDDLE - height / 2, 6, height, "map")], 6
