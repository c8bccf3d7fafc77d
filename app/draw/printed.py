"""Figures as SVG, for the printed report: the curves that plotly.js draws on pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from app.draw import svg
from app.draw.figures import Band, Figure, Line
from app.draw.markers import colour_of, marker
from app.draw.svg import Drawing, Point
from app.words import axis_number, axis_number_with_prefix

_MOST_MARKERS = 30  # of one line


@dataclass(frozen=True)
class _Axis:
    """One axis: its ends, and the place of a value on the drawing. Values beyond the ends are drawn at the ends."""

    low: float
    high: float
    place: tuple[float, float]
    is_log: bool = False

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return svg.scale((math.log10(self.low), math.log10(self.high)), self.place)(math.log10(value))
        return svg.scale((self.low, self.high), self.place)(value)


def figure_drawing(figure: Figure, label: str, *, width: float = 520, height: float = 260) -> Drawing:
    """The figure as SVG: bands behind, then lines and markers."""
    left, right, top, bottom = 46.0, width - 12, 10.0, height - 40
    x = _x_axis(figure, (left, right))
    y = _y_axis(figure, (bottom, top))
    parts: list[Markup] = []
    for value in figure.axes.y_ticks or svg.ticks(y.low, y.high, 6):
        if y.low <= value <= y.high:
            parts.append(svg.horizontal(y.at(value), left, right, "grid"))
            parts.append(svg.text(left - 6, y.at(value) + 3.5, axis_number(value), "end"))
    parts.append(svg.horizontal(bottom, left, right, "axis"))
    parts += [
        svg.text(x.at(value), bottom + 15, axis_number_with_prefix(value), "mid") for value in _x_ticks(figure, x)
    ]
    parts.append(svg.text(right, bottom + 32, figure.axes.x_title, "end"))
    parts += [_drawn_band(band, x, y) for band in figure.bands]
    parts += [_drawn_line(line, x, y) for line in figure.lines]
    return Drawing(width, height, label, tuple(parts), "chart")


def _x_axis(figure: Figure, place: tuple[float, float]) -> _Axis:
    values = [value for curve in figure.curves for value in curve.x]
    low, high = figure.axes.x_range or (min(values, default=0.0), max(values, default=1.0))
    return _Axis(low, high if high > low else low + 1, place)


def _y_axis(figure: Figure, place: tuple[float, float]) -> _Axis:
    """The axis from its range, else from lines and bands with some room around them."""
    axes = figure.axes
    is_log = axes.y_ticks is not None
    values = [value for curve in figure.curves for value in curve.heights if value > 0 or not is_log]
    low, high = axes.y_range or (min(values, default=0.0), max(values, default=1.0))
    if is_log:
        if axes.y_range is None:
            low, high = low / 1.1, high * 1.1
        return _Axis(low, high, place, True) if 0 < low < high else _Axis(0.1, 1.0, place, True)
    if axes.y_range is None:
        pad = (high - low) * 0.06 or 0.5
        low, high = (0.0 if axes.from_zero else low - pad), high + pad
    return _Axis(low, high if high > low else low + 1, place)


def _x_ticks(figure: Figure, axis: _Axis) -> list[float]:
    if figure.axes.epoch_ticks:
        first, step = figure.axes.epoch_ticks
        epochs = range(first, math.floor(axis.high) + 1, step)
        if kept := [float(epoch) for epoch in epochs if epoch >= axis.low]:
            return kept
    return svg.ticks(axis.low, axis.high, 6)


def _drawn_band(band: Band, x: _Axis, y: _Axis) -> Markup:
    outline = [*zip(band.x, band.high, strict=True), *reversed(list(zip(band.x, band.low, strict=True)))]
    return svg.group(_colour(band.index), [svg.polygon(_placed(outline, x, y), "area")])


def _drawn_line(line: Line, x: _Axis, y: _Axis) -> Markup:
    points = _placed(zip(line.x, line.y, strict=True), x, y)
    dashes = "none" if line.dashes == "solid" else line.dashes.replace("px", "").replace(",", " ")
    opacity = 1 if line.opacity is None else line.opacity
    # On a group, as the style sheet's width of the polyline itself would win over its attributes.
    style = f'stroke-width="{line.width}" stroke-dasharray="{dashes}" opacity="{opacity}"'
    drawn = Markup(f"<g {style}>{svg.polyline(points, 'own')}</g>")
    return svg.group(_colour(line.index), [drawn, *_line_markers(line, points)])


def _line_markers(line: Line, points: Sequence[Point]) -> list[Markup]:
    if line.index is None or not line.has_markers or len(points) > _MOST_MARKERS:
        return []
    return [marker(line.index, x, y, radius=3.5) for x, y in points]


def _placed(values: Iterable[Point], x: _Axis, y: _Axis) -> list[Point]:
    return [(x.at(a), y.at(b)) for a, b in values]


def _colour(index: int | None) -> str:
    return "faint" if index is None else f"r{colour_of(index)}"
