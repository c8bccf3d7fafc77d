"""Geometry of the sweep page's charts: parallel coordinates and one-factor plots. The template draws it; colours are CSS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from app.draw.svg import ticks
from app.runs.sweeps import Level
from app.words import axis_number
from trainer.i18n import _

_DIAMOND = 6.0
_MOST_LABELS = 7  # on the axis of a one-factor plot
_LONGEST_LABEL = 13  # characters
MANY = (
    200  # runs of which single lines and rings can't be told apart: drawn faint and small, without words of their own
)
Place = Callable[[float], float]


@dataclass(frozen=True)
class Label:
    """A text at a place; ``css`` says how it is anchored and set."""

    x: float
    y: float
    text: str
    css: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points, with what a pointer on it shows."""

    points: str
    css: str
    title: str


@dataclass(frozen=True)
class Dot:
    """One run of a one-factor plot."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Chart:
    """One SVG: what to draw, from back to front."""

    width: float
    height: float
    css: str
    label: str  # for those who can't see it
    grid: str = ""
    axes: str = ""
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    means: list[str] = field(default_factory=list)  # paths of diamonds
    cloud: str = ""  # in place of the dots where there are many: one path of points
    labels: list[Label] = field(default_factory=list)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


def domain_of(accuracies: Sequence[float]) -> tuple[float, float]:
    """Both ends of an axis in per cent that holds all accuracies (fractions), with a little room; 0 to 100 without any."""
    if not accuracies:
        return 0.0, 100.0
    low, high = 100 * min(accuracies), 100 * max(accuracies)
    room = max((high - low) * 0.06, 0.1)
    return max(0.0, low - room), min(100.0, high + room)


def _linear(domain: tuple[float, float], start: float, end: float) -> Place:
    low, high = domain
    return lambda percent: start + (percent - low) / (high - low) * (end - start)


# Parallel coordinates ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A field that varies, with the words for its values in order."""

    title: str
    labels: list[str]


@dataclass(frozen=True)
class Path:
    """One run: its value on each axis (-1 where the field does not apply), its accuracy, how it is drawn."""

    name: str
    places: list[int]
    accuracy: float
    css: str = ""  # "best", "top" (quarter) or "off" (left out by a filter)


def parallel(axes: Sequence[Axis], paths: Sequence[Path]) -> list[Chart]:
    """Each run as a line over the values of its fields to its accuracy: for wide and for narrow screens."""
    ordered = sorted(paths, key=lambda path: (path.css == "best", path.css == "top", path.css != "off"))
    axes = [_with_dash(axis, [path.places[i] for path in paths]) for i, axis in enumerate(axes)]
    label = _("{n} runs as lines over {fields} to the test accuracy; the table below holds the same numbers").format(
        n=f"{len(paths):,}", fields=", ".join(axis.title for axis in axes)
    )
    return [_parallel_wide(axes, ordered, label), _parallel_narrow(axes, ordered, label)]


def _with_dash(axis: Axis, places: Sequence[int]) -> Axis:
    """With a last place for the runs to which the field does not apply, which -1 then names."""
    return Axis(axis.title, [*axis.labels, "–"]) if -1 in places else axis


def _spread(paths: Sequence[Path]) -> list[float]:
    """For each path a part of its place, -0.5 to 0.5 by accuracy, so that lines through one value stay apart."""
    ranks = sorted(range(len(paths)), key=lambda i: paths[i].accuracy)
    share = {position: rank / max(len(paths) - 1, 1) - 0.5 for rank, position in enumerate(ranks)}
    return [share[i] for i in range(len(paths))]


def _parallel_wide(axes: Sequence[Axis], paths: Sequence[Path], label: str) -> Chart:
    width, top, bottom, left, right = 960.0, 40.0, 236.0, 92.0, 900.0
    y = _linear(domain_of([path.accuracy for path in paths]), bottom, top)
    xs = [left + i * (right - left) / len(axes) for i in range(len(axes) + 1)]
    places = [
        [bottom - (i + 0.5) * (bottom - top) / len(axis.labels) for i in range(len(axis.labels))] for axis in axes
    ]
    labels = [Label(x, 16, axis.title, "ttl mid") for x, axis in zip(xs, axes, strict=False)]
    labels.append(Label(xs[-1], 16, _("Test accuracy, %"), "ttl mid"))
    for x, axis, heights in zip(xs, axes, places, strict=False):
        labels += [
            Label(x - 9, height + 4, _short(text), "end halo")
            for text, height in zip(axis.labels, heights, strict=True)
        ]
    marks = ticks(*domain_of([path.accuracy for path in paths]), 6)
    labels += [Label(xs[-1] + 9, y(value) + 4, axis_number(value)) for value in marks]
    lines = []
    for path, part in zip(paths, _spread(paths), strict=True):
        points = [
            (x, heights[place] - part * 0.55 * (bottom - top) / len(heights))
            for x, heights, place in zip(xs, places, path.places, strict=False)
        ]
        lines.append(_line(path, [*points, (xs[-1], y(100 * path.accuracy))], len(paths)))
    uprights = "".join(f"M{x:.1f} {top - 10:.0f}V{bottom:.0f}" for x in xs)
    small = "".join(f"M{xs[-1]:.1f} {y(value):.1f}h5" for value in marks)
    return Chart(
        width, bottom + 12, _css("chart wide", len(paths)), label, axes=uprights + small, lines=lines, labels=labels
    )


def _parallel_narrow(axes: Sequence[Axis], paths: Sequence[Path], label: str) -> Chart:
    """The same, turned: one axis below the other."""
    width, step, left, right = 340.0, 74.0, 10.0, 330.0
    domain = domain_of([path.accuracy for path in paths])
    x = _linear(domain, left, right)
    ys = [34 + i * step for i in range(len(axes) + 1)]
    places = [[left + (i + 0.5) * (right - left) / len(axis.labels) for i in range(len(axis.labels))] for axis in axes]
    labels = []
    for y, axis, spots in zip(ys, axes, places, strict=False):
        labels.append(Label(0, y - 18, axis.title, "ttl"))
        every = math.ceil(len(spots) / 6)
        labels += [
            Label(spot, y - 5, _short(text), "mid halo")
            for spot, text in list(zip(spots, axis.labels, strict=True))[::every]
        ]
    marks = ticks(*domain, 4)
    labels.append(Label(0, ys[-1] - 8, _("Test accuracy, %"), "ttl"))
    labels += [Label(x(value), ys[-1] + 15, axis_number(value), "mid") for value in marks]
    lines = []
    for path, part in zip(paths, _spread(paths), strict=True):
        points = [
            (spots[place] + part * 0.55 * (right - left) / len(spots), y)
            for y, spots, place in zip(ys, places, path.places, strict=False)
        ]
        lines.append(_line(path, [*points, (x(100 * path.accuracy), ys[-1])], len(paths)))
    levels = "".join(f"M{left:.0f} {y:.1f}H{right:.0f}" for y in ys)
    return Chart(width, ys[-1] + 22, _css("chart narrow", len(paths)), label, axes=levels, lines=lines, labels=labels)


def _css(css: str, count: int) -> str:
    return f"{css} crowd" if count > MANY else css


def _line(path: Path, points: Sequence[tuple[float, float]], count: int) -> Line:
    """One of ``count`` lines; of many only the best has a title."""
    title = _("{name}: {accuracy} %").format(name=path.name, accuracy=f"{100 * path.accuracy:.2f}")
    shown = count <= MANY or path.css == "best"
    return Line(" ".join(f"{x:.1f},{y:.1f}" for x, y in points), path.css, title if shown else "")


# One factor ----------------------------------------------------------------------------------------------------------


def one_factor(title: str, levels: Sequence[Level], domain: tuple[float, float]) -> Chart:
    """Accuracy over the values of one field: each run a dot, the mean of each value a diamond. ``domain`` is in per cent."""
    left, right, top, bottom = 40.0, 332.0, 12.0, 158.0
    y = _linear(domain, bottom, top)
    step = (right - left) / len(levels)
    xs = [left + (i + 0.5) * step for i in range(len(levels))]
    marks = ticks(*domain, 5)
    every = math.ceil(len(levels) / _MOST_LABELS)
    labels = [Label(left - 6, y(value) + 4, axis_number(value), "end") for value in marks]
    labels += [
        Label(x, bottom + 16, _short(level.label), "mid") for x, level in list(zip(xs, levels, strict=True))[::every]
    ]
    means = [(x, y(100 * level.mean)) for x, level in zip(xs, levels, strict=True) if level.mean is not None]
    words = "; ".join(
        _("{value}: mean {mean} % of {n}").format(
            value=level.label, mean=f"{100 * level.mean:.2f}", n=len(level.accuracies)
        )
        for level in levels
        if level.mean is not None
    )
    dots = [dot for x, level in zip(xs, levels, strict=True) for dot in _dots(x, level, y, step)]
    many = len(dots) > MANY
    return Chart(
        340, bottom + 24, "chart", _("Test accuracy by {field}. {words}").format(field=title, words=words),
        grid="".join(f"M{left:.0f} {y(value):.1f}H{right:.0f}" for value in marks),
        lines=[Line(" ".join(f"{a:.1f},{b:.1f}" for a, b in means), "", "")] if len(means) > 1 else [],
        dots=[] if many else dots, cloud="".join(f"M{dot.x:.1f} {dot.y:.1f}h0" for dot in dots) if many else "",
        means=[f"M{a:.1f} {b - _DIAMOND:.1f}l6 6l-6 6l-6 -6z" for a, b in means], labels=labels,
    )  # fmt: skip


def _dots(x: float, level: Level, y: Place, step: float) -> list[Dot]:
    """Side by side where there are several, the neighbours in accuracy apart; of many, without a pattern to the eye."""
    room = min(36.0, 0.7 * step)
    width, stride = (17, 7) if len(level.accuracies) > MANY // 4 else (min(5, len(level.accuracies)), 1)
    return [
        Dot(
            x + room * ((number * stride % width + 0.5) / width - 0.5),
            y(100 * accuracy),
            f"{level.label}: {100 * accuracy:.2f} %",
        )
        for number, accuracy in enumerate(level.accuracies)
    ]
