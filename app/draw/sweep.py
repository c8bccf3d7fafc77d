"""Charts of the sweep page: parallel coordinates, and the accuracy over the values of one field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from app.draw import svg
from app.draw.svg import Drawing, Point, ResponsiveDrawing, Scale
from app.runs.sweeps import Level
from app.words import axis_number
from trainer.i18n import _

# With more runs single lines and marks can't be told from each other, so they are drawn faint or small, without titles.
MANY = 200
_DIAMOND = 6.0
_MOST_LABELS = 7  # on the axis of a one-factor plot
_LONGEST_LABEL = 13  # characters


def domain_of(accuracies: Sequence[float]) -> tuple[float, float]:
    """Both ends, in percent, of an axis that holds all accuracies (fractions) with a little room; 0 to 100 without any."""
    if not accuracies:
        return 0.0, 100.0
    low, high = 100 * min(accuracies), 100 * max(accuracies)
    room = max((high - low) * 0.06, 0.1)
    return max(0.0, low - room), min(100.0, high + room)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


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


def parallel(axes: Sequence[Axis], paths: Sequence[Path]) -> ResponsiveDrawing:
    """Each run as a line over the values of its fields to its accuracy."""
    ordered = sorted(paths, key=lambda path: (path.css == "best", path.css == "top", path.css != "off"))
    axes = [_with_dash(axis, [path.places[i] for path in paths]) for i, axis in enumerate(axes)]
    label = _("{n} runs as lines over {fields} to the test accuracy; the table below holds the same numbers").format(
        n=f"{len(paths):,}", fields=", ".join(axis.title for axis in axes)
    )
    crowd = " crowd" if len(paths) > MANY else ""
    return ResponsiveDrawing(
        _parallel_wide(axes, ordered, label, f"chart wide{crowd} r5"),
        _parallel_narrow(axes, ordered, label, f"chart narrow{crowd} r5"),
    )


def _with_dash(axis: Axis, places: Sequence[int]) -> Axis:
    """With a last place for the runs to which the field does not apply, which -1 then names."""
    return Axis(axis.title, [*axis.labels, "–"]) if -1 in places else axis


def _spread(paths: Sequence[Path]) -> list[float]:
    """For each path a part of its place, -0.5 to 0.5 by accuracy, so that lines through one value stay apart."""
    ranks = sorted(range(len(paths)), key=lambda i: paths[i].accuracy)
    share = {position: rank / max(len(paths) - 1, 1) - 0.5 for rank, position in enumerate(ranks)}
    return [share[i] for i in range(len(paths))]


def _places(axis: Axis, start: float, end: float) -> list[float]:
    """The middle of the place of each value."""
    step = (end - start) / len(axis.labels)
    return [start + (i + 0.5) * step for i in range(len(axis.labels))]


def _parallel_wide(axes: Sequence[Axis], paths: Sequence[Path], label: str, css: str) -> Drawing:
    """The axes stand beside each other."""
    width, top, bottom, left, right = 960.0, 40.0, 236.0, 92.0, 900.0
    domain = domain_of([path.accuracy for path in paths])
    y = svg.scale(domain, (bottom, top))
    xs = [left + i * (right - left) / len(axes) for i in range(len(axes) + 1)]
    places = [_places(axis, bottom, top) for axis in axes]
    lines = [
        _line(
            path,
            [
                (x, heights[place] - part * 0.55 * (bottom - top) / len(heights))
                for x, heights, place in zip(xs, places, path.places, strict=False)
            ]
            + [(xs[-1], y(100 * path.accuracy))],
            len(paths),
        )
        for path, part in zip(paths, _spread(paths), strict=True)
    ]
    labels = [svg.text(x, 16, axis.title, "ttl mid") for x, axis in zip(xs, axes, strict=False)]
    labels.append(svg.text(xs[-1], 16, _("Test accuracy, %"), "ttl mid"))
    for x, axis, heights in zip(xs, axes, places, strict=False):
        labels += [
            svg.text(x - 9, height + 4, _short(text), "end halo")
            for text, height in zip(axis.labels, heights, strict=True)
        ]
    marks = svg.ticks(*domain, 6)
    labels += [svg.text(xs[-1] + 9, y(value) + 4, axis_number(value)) for value in marks]
    uprights = "".join(f"M{x:.1f} {top - 10:.0f}V{bottom:.0f}" for x in xs)
    small = "".join(f"M{xs[-1]:.1f} {y(value):.1f}h5" for value in marks)
    return Drawing(width, bottom + 12, label, (*lines, svg.path(uprights + small, "axis"), *labels), css)


def _parallel_narrow(axes: Sequence[Axis], paths: Sequence[Path], label: str, css: str) -> Drawing:
    """The axes lie below each other."""
    width, step, left, right = 340.0, 74.0, 10.0, 330.0
    domain = domain_of([path.accuracy for path in paths])
    x = svg.scale(domain, (left, right))
    ys = [34 + i * step for i in range(len(axes) + 1)]
    places = [_places(axis, left, right) for axis in axes]
    lines = [
        _line(
            path,
            [
                (spots[place] + part * 0.55 * (right - left) / len(spots), y)
                for y, spots, place in zip(ys, places, path.places, strict=False)
            ]
            + [(x(100 * path.accuracy), ys[-1])],
            len(paths),
        )
        for path, part in zip(paths, _spread(paths), strict=True)
    ]
    labels = []
    for y, axis, spots in zip(ys, axes, places, strict=False):
        labels.append(svg.text(0, y - 18, axis.title, "ttl"))
        every = math.ceil(len(spots) / 6)
        labels += [
            svg.text(spot, y - 5, _short(text), "mid halo")
            for spot, text in list(zip(spots, axis.labels, strict=True))[::every]
        ]
    marks = svg.ticks(*domain, 4)
    labels.append(svg.text(0, ys[-1] - 8, _("Test accuracy, %"), "ttl"))
    labels += [svg.text(x(value), ys[-1] + 15, axis_number(value), "mid") for value in marks]
    levels = "".join(f"M{left:.0f} {y:.1f}H{right:.0f}" for y in ys)
    return Drawing(width, ys[-1] + 22, label, (*lines, svg.path(levels, "axis"), *labels), css)


def _line(path: Path, points: Sequence[Point], count: int) -> Markup:
    """One of ``count`` lines; of many only the best has a title."""
    title = _("{name}: {accuracy} %").format(name=path.name, accuracy=f"{100 * path.accuracy:.2f}")
    shown = count <= MANY or path.css == "best"
    return svg.polyline(points, path.css or "thin", title=title if shown else "")


# One factor ----------------------------------------------------------------------------------------------------------


def one_factor(title: str, levels: Sequence[Level], domain: tuple[float, float]) -> Drawing:
    """Accuracy over the values of one field: each run a dot, the mean of each value a diamond.

    ``domain`` holds both ends of the accuracy axis, in percent.
    """
    left, right, top, bottom = 40.0, 332.0, 12.0, 158.0
    y = svg.scale(domain, (bottom, top))
    step = (right - left) / len(levels)
    xs = [left + (i + 0.5) * step for i in range(len(levels))]
    marks = svg.ticks(*domain, 5)
    means = [(x, y(100 * level.mean)) for x, level in zip(xs, levels, strict=True) if level.mean is not None]
    every = math.ceil(len(levels) / _MOST_LABELS)
    parts = [
        svg.path("".join(f"M{left:.0f} {y(value):.1f}H{right:.0f}" for value in marks), "grid"),
        *([svg.polyline(means, "thin")] if len(means) > 1 else []),
        svg.group("r1", _dots(levels, xs, y, step)),
        *(svg.diamond(a, b, _DIAMOND) for a, b in means),
        *(svg.text(left - 6, y(value) + 4, axis_number(value), "end") for value in marks),
        *(
            svg.text(x, bottom + 16, _short(level.label), "mid")
            for x, level in list(zip(xs, levels, strict=True))[::every]
        ),
    ]
    label = _("Test accuracy by {field}. {words}").format(field=title, words=_means_in_words(levels))
    return Drawing(340, bottom + 24, label, tuple(parts), "chart r5")


def _means_in_words(levels: Sequence[Level]) -> str:
    return "; ".join(
        _("{value}: mean {mean} % of {n}").format(
            value=level.label, mean=f"{100 * level.mean:.2f}", n=len(level.accuracies)
        )
        for level in levels
        if level.mean is not None
    )


def _dots(levels: Sequence[Level], xs: Sequence[float], y: Scale, step: float) -> list[Markup]:
    """The runs as circles with titles; many of them as one path of points."""
    placed = [
        (dot_x, accuracy, level.label)
        for x, level in zip(xs, levels, strict=True)
        for dot_x, accuracy in _beside(x, level.accuracies, step)
    ]
    if len(placed) > MANY:
        return [svg.path("".join(f"M{x:.1f} {y(100 * accuracy):.1f}h0" for x, accuracy, _label in placed), "cloud")]
    return [
        svg.circle(x, y(100 * accuracy), 3, "pt open", title=f"{label}: {100 * accuracy:.2f} %")
        for x, accuracy, label in placed
    ]


def _beside(x: float, accuracies: Sequence[float], step: float) -> list[Point]:
    """A place and the accuracy of each run, close accuracies apart; many runs are spread without a visible pattern."""
    room = min(36.0, 0.7 * step)
    width, stride = (17, 7) if len(accuracies) > MANY // 4 else (min(5, len(accuracies)), 1)
    return [
        (x + room * ((number * stride % width + 0.5) / width - 0.5), accuracy)
        for number, accuracy in enumerate(accuracies)
    ]
