"""Charts: geometry as SVG with classes (colour is CSS, so that themes just work), and figures for plotly.js as JSON.

Nothing here reads runs or decides what a result means; callers bring numbers and words. Figures name colours by token
("run-1"); static/charts.js fills them in and redraws on a change of theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from markupsafe import Markup

from app.words import axis_number, axis_number_with_prefix, between, signed
from trainer.i18n import _

MARKS = 8  # colours, markers and dashes; further runs combine them anew, so that 64 differ in colour or marker
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "circle-open", "x", "line-ew-open", "line-ns-open")
_DASHES = ("solid", "solid", "6px,3px", "6px,3px", "2px,3px", "2px,3px", "8px,3px,2px,3px", "8px,3px,2px,3px")
_LINE_CLASSES = ("", "", "dash", "dash", "dot", "dot", "dashdot", "dashdot")
_CHARACTER = 5.8  # width of a character in a chart, about


@dataclass(frozen=True)
class Drawing:
    """One SVG; in a template it stands for itself."""

    width: float
    height: float
    label: str  # for those who can't see it
    parts: tuple[Markup, ...]
    css: str = "chart"

    def __html__(self) -> str:
        return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            self.css, _n(self.width), _n(self.height), self.label, Markup("").join(self.parts)
        )


@dataclass(frozen=True)
class Pair:
    """The same chart for wide and for narrow screens; the style sheet shows one."""

    wide: Drawing
    narrow: Drawing

    def __html__(self) -> str:
        return Markup("").join([Markup(self.wide.__html__()), Markup(self.narrow.__html__())])


def colour_of(index: int) -> int:
    """The number of the colour of run ``index`` (from 0) on a page: the token run-1 to run-8."""
    return index % MARKS + 1


def marker_of(index: int) -> int:
    """The number of its marker, 0 to 7: another one each time the colours begin again."""
    return (index + index // MARKS) % MARKS


def dash_of(index: int) -> int:
    """The number of its dash, 0 to 7, two of which look alike."""
    return (index + 2 * (index // MARKS)) % MARKS


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text(x: float, y: float, text: str, css: str = "") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(css, _n(x), _n(y), text)


def _path(d: str, css: str) -> Markup:
    return Markup('<path class="{}" d="{}"/>').format(css, d)


def _rect(x: float, y: float, width: float, height: float, css: str) -> Markup:
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
        css, _n(x), _n(y), _n(width), _n(height)
    )


def _group(css: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<g class="{}">{}</g>').format(css, Markup("").join(parts))


def _line(points: Sequence[tuple[float, float]], css: str) -> Markup:
    return Markup('<polyline class="ln {}" points="{}"/>').format(css, " ".join(f"{_n(x)},{_n(y)}" for x, y in points))


def marker(index: int, x: float, y: float, *, css: str = "pt", radius: float = 4.5) -> Markup:
    """The mark of run number ``index`` (from 0) around a point."""
    r = radius
    match marker_of(index):
        case 1:
            return _rect(x - 0.88 * r, y - 0.88 * r, 1.76 * r, 1.76 * r, css)
        case 2:
            return _path(f"M{_n(x)} {_n(y - 1.15 * r)}l{_n(1.1 * r)} {_n(2 * r)}h{_n(-2.2 * r)}z", css)
        case 3:
            return _diamond(x, y, 1.3 * r, css)
        case 5:
            return _path(
                f"M{_n(x - r)} {_n(y - r)}l{_n(2 * r)} {_n(2 * r)}m0 {_n(-2 * r)}l{_n(-2 * r)} {_n(2 * r)}", "ci slim"
            )
        case 6:
            return _path(f"M{_n(x - r)} {_n(y)}h{_n(2 * r)}", "ci")
        case 7:
            return _path(f"M{_n(x)} {_n(y - r)}v{_n(2 * r)}", "ci")
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(css, _n(x), _n(y), _n(r))


def _diamond(x: float, y: float, r: float, css: str = "pt") -> Markup:
    return _path(f"M{_n(x)} {_n(y - r)}l{_n(r)} {_n(r)}l{_n(-r)} {_n(r)}l{_n(-r)} {_n(-r)}z", css)


def _whisker(low: float, high: float, y: float, cap: float = 5) -> Markup:
    c = _n(2 * cap)
    ends = f"M{_n(low)} {_n(y - cap)}v{c}M{_n(high)} {_n(y - cap)}v{c}"
    return _path(f"M{_n(low)} {_n(y)}H{_n(high)}{ends}", "ci")


# Axes ----------------------------------------------------------------------------------------------------------------


def nice_step(span: float, count: int = 6) -> float:
    """A step of 1, 2, 2.5 or 5 times a power of ten that divides ``span`` into at most ``count`` parts."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(step * power for step in (1, 2, 2.5, 5, 10, 20) if span / (step * power) <= count)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``."""
    step = nice_step(high - low, count)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _scale(domain: tuple[float, float], place: tuple[float, float]) -> Callable[[float], float]:
    (a, b), (x, y) = domain, place
    return lambda value: x + (value - a) / ((b - a) or 1.0) * (y - x)


# The schedule of the learning rate -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A line with its number (for colour and dash) and its label in the legend."""

    index: int
    label: str
    points: list[tuple[float, float]]


def learning_rates(
    schedule: str, rate: float, peak_at: float | None, total_steps: int, count: int = 100
) -> list[tuple[float, float]]:
    """(step, learning rate) along a run, at most ``count`` + 2 points; the formulas are ``trainer.optimizers``'."""
    steps = {1 + round(number * (total_steps - 1) / count) for number in range(count + 1)}
    peak = peak_at or 0.25
    if schedule == "one_cycle":
        steps.add(min(max(round(peak * total_steps), 1), total_steps))
    return [(float(step), rate * _share(schedule, (step - 0.5) / total_steps, peak)) for step in sorted(steps)]


def _share(schedule: str, part: float, peak: float) -> float:
    match schedule:
        case "cosine":
            return (1 + math.cos(math.pi * part)) / 2
        case "one_cycle":
            return min(part / peak, (1 - part) / (1 - peak))
    return 1.0


def schedule_chart(curves: Sequence[Curve], *, steps_per_epoch: int, total_steps: int) -> Pair:
    """Learning rate over the steps of a run."""
    label = _("Learning rate")
    return Pair(
        _schedule(curves, steps_per_epoch, total_steps, 820, label, "chart wide"),
        _schedule(curves, steps_per_epoch, total_steps, 340, label, "chart narrow"),
    )


def _schedule(
    curves: Sequence[Curve], per_epoch: int, total: int, width: float, label: str, css: str
) -> Drawing:  # fmt: skip
    left, right, top, bottom = 42.0, width - 14, 24.0, 116.0
    highest = float(f"{max((y for curve in curves for _x, y in curve.points), default=1.0):.3g}")
    marks = ticks(0, highest, 4) or [0.0]
    highest = max(highest, marks[-1])
    x, y = _scale((0, total), (left, right)), _scale((0, highest), (bottom, top))
    parts = [_text(0, 11, label, "ttl")]
    for value in marks:
        parts += [
            _path(f"M{_n(left)} {_n(y(value))}H{_n(right)}", "grid"),
            _text(left - 6, y(value) + 3.5, axis_number(value), "end"),
        ]
    parts.append(_path(f"M{_n(left)} {_n(bottom)}H{_n(right)}", "axis"))
    steps = _epoch_ticks(per_epoch, total, 5 if width > 400 else 3)
    parts += [_text(x(s), bottom + 15, f"{s:,}", "end" if s == total else "mid") for s in steps]
    caption = _("step ({n} an epoch)").format(n=f"{per_epoch:,}")
    parts.append(_text(right, bottom + 30, caption, "end"))
    for curve in curves:
        line = _line([(x(a), y(b)) for a, b in curve.points], _LINE_CLASSES[dash_of(curve.index)])
        parts.append(_group(f"r{colour_of(curve.index)}", [line]))
    return Drawing(width, 150, label, tuple(parts), css)


def _epoch_ticks(per_epoch: int, total: int, count: int) -> list[int]:
    epochs = max(round(total / per_epoch), 1)
    every = max(math.ceil(epochs / count), 1)
    inner = [per_epoch * epoch for epoch in range(0, epochs, every) if per_epoch * epoch < total * 0.93 or epoch == 0]
    return [*inner, total]


# The net -------------------------------------------------------------------------------------------------------------


def net_chart(shapes: Sequence[Sequence[int]]) -> Drawing:
    """The shapes an image passes through, drawn in proportion: maps as stacked squares, features as bars."""
    words = [_shape_words(shape) for shape in shapes]
    label = _("the shapes an image passes through: {shapes}").format(shapes=", ".join(words))
    largest_map = max((max(shape[1:]) for shape in shapes if len(shape) == 3), default=1)
    longest = max((shape[0] for shape in shapes if len(shape) == 1), default=1)
    parts: list[Markup] = []
    x = 2.0
    for shape, text in zip(shapes, words, strict=True):
        drawn, width = _map(shape, x, largest_map) if len(shape) == 3 else _bar(shape[0], x, longest)
        room = max(width, 6.2 * len(text))
        parts += [*drawn, _text(x + width / 2, 104, text, "mid")]
        x += max(width + 20, (width + room) / 2 + 8)
    return Drawing(max(x, 120), 110, label, tuple(parts), "chart net")


def _shape_words(shape: Sequence[int]) -> str:
    if len(shape) != 3:
        return f"{shape[0]:,}"
    side = f"{shape[1]}²" if shape[1] == shape[2] else f"{shape[1]} × {shape[2]}"
    return f"{shape[0]} × {side}"


def _map(shape: Sequence[int], x: float, largest: int) -> tuple[list[Markup], float]:
    count = min(shape[0], 6)
    height, width = (max(side / largest * 53.2, 4.0) for side in shape[1:])
    top = 52 - (height + 2.2 * (count - 1)) / 2
    squares = [_rect(x + 2.5 * i, top + 2.2 * i, width, height, "map") for i in range(count)]
    return squares, width + 2.5 * (count - 1)


def _bar(features: int, x: float, longest: int) -> tuple[list[Markup], float]:
    height = max(math.sqrt(features / longest) * 69, 6.0)
    return [_rect(x, 52 - height / 2, 6, height, "map")], 6


# The forest plot -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForestRow:
    """One difference with its interval, in percentage points."""

    title: str
    detail: str
    difference: float
    low: float
    high: float
    favours: int | None = None  # number of the run that the row favours; None when it favours neither

    def words(self) -> str:
        return f"{signed(self.difference)}, {between(signed(self.low), signed(self.high))}"


def forest_plot(rows: Sequence[ForestRow], *, margin: float, left: str, right: str, level: float = 0.95) -> Pair:
    """Differences around zero with the margin (in points); ``left`` and ``right`` name the run that each side favours."""
    label = _("difference with {level} % interval: {rows} points").format(
        level=axis_number(level * 100), rows="; ".join(f"{row.title} {row.words()}" for row in rows)
    )
    sides = (_("{name} better").format(name=left), _("{name} better").format(name=right))
    return Pair(_forest_wide(rows, margin, sides, label), _forest_narrow(rows, margin, sides, label))


def _forest_domain(rows: Sequence[ForestRow], margin: float) -> tuple[float, float]:
    low, high = min([-margin, *(r.low for r in rows)]), max([margin, *(r.high for r in rows)])
    pad = (high - low) * 0.12
    return low - pad, high + pad


def _forest_frame(
    rows: Sequence[ForestRow],
    margin: float,
    sides: tuple[str, str],
    x: Callable[[float], float],
    bottom: float,
    count: int,
    width: float,
) -> list[Markup]:
    domain = _forest_domain(rows, margin)
    parts = [_rect(x(-margin), 16, x(margin) - x(-margin), bottom - 16, "margin")]
    for value in ticks(*domain, count):
        digits = axis_number(value) if value <= 0 else "+" + axis_number(value)
        parts += [_path(f"M{_n(x(value))} 16V{_n(bottom)}", "grid"), _text(x(value), bottom + 14, digits, "mid")]
    parts.append(_path(f"M{_n(x(0))} 16V{_n(bottom)}", "zero"))
    return [*parts, *_sides(sides, x(0), width)]


def _sides(sides: tuple[str, str], zero: float, width: float) -> list[Markup]:
    """Whom each side of zero favours; a name that has no room on its side is left out, the other one tells enough."""
    left, right = f"{sides[0]} ←", f"→ {sides[1]}"
    parts = []
    if zero - 8 - _CHARACTER * len(left) >= 0:
        parts.append(_text(zero - 8, 11, left, "end"))
    if zero + 8 + _CHARACTER * len(right) <= width or not parts:
        parts.append(_text(zero + 8, 11, right))
    return parts


def _forest_key(margin: float, x: float, y: float) -> list[Markup]:
    text = _("±{margin}: too small to matter").format(margin=axis_number(margin))
    return [_rect(x, y - 9, 11, 11, "margin"), _text(x + 16, y, text)]


def _forest_wide(rows: Sequence[ForestRow], margin: float, sides: tuple[str, str], label: str) -> Drawing:
    bottom = 66 + 44 * (len(rows) - 1)
    x = _scale(_forest_domain(rows, margin), (226, 578))
    parts = _forest_frame(rows, margin, sides, x, bottom, 7, 720)
    parts += [_text(578, bottom + 32, _("difference in test accuracy, percentage points"), "end")]
    parts += _forest_key(margin, 0, bottom + 32)
    for number, row in enumerate(rows):
        y = 44 + 44 * number
        parts += [_text(0, y - 2, row.title, "ttl"), _text(0, y + 13, row.detail)]
        parts += [_text(720, y - 2, _("{n} points").format(n=signed(row.difference)), "val end")]
        parts += [_text(720, y + 13, between(signed(row.low), signed(row.high)), "end"), _forest_mark(row, x, y)]
    return Drawing(720, bottom + 40, label, tuple(parts), "chart wide")


def _forest_narrow(rows: Sequence[ForestRow], margin: float, sides: tuple[str, str], label: str) -> Drawing:
    bottom = 86 + 64 * (len(rows) - 1)
    x = _scale(_forest_domain(rows, margin), (8, 332))
    parts = _forest_frame(rows, margin, sides, x, bottom, 5, 340)
    parts += [_text(332, bottom + 32, _("difference in test accuracy, percentage points"), "end")]
    parts += _forest_key(margin, 8, bottom + 51)
    for number, row in enumerate(rows):
        y = 64 + 64 * number
        interval = f"{signed(row.difference)} ({between(signed(row.low), signed(row.high))})"
        parts += [_text(8, y - 22, row.title, "ttl"), _text(332, y - 22, interval, "end halo"), _forest_mark(row, x, y)]
    return Drawing(340, bottom + 58, label, tuple(parts), "chart narrow")


def _forest_mark(row: ForestRow, x: Callable[[float], float], y: float) -> Markup:
    colour = "r5" if row.favours is None else f"r{colour_of(row.favours)}"
    return _group(colour, [_whisker(x(row.low), x(row.high), y), _diamond(x(row.difference), y, 6.6)])


# Seeds ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedRow:
    """The accuracies of one recipe's seeds in per cent, with the mean and its interval."""

    index: int
    name: str
    values: list[float]
    mean: float
    low: float
    high: float


def seeds_chart(rows: Sequence[SeedRow], *, caption: str) -> Pair:
    """Each seed as an open mark, mean and interval as a diamond with whiskers."""
    label = _("{caption}: each seed as a mark, mean and 95 % interval").format(caption=caption)
    return Pair(_seeds(rows, 600, caption, label, "chart wide"), _seeds(rows, 340, caption, label, "chart narrow"))


def _seeds(rows: Sequence[SeedRow], width: float, caption: str, label: str, css: str) -> Drawing:
    wide = width > 400
    least, most, right = (84.0, 210.0, width - 104) if wide else (62.0, 140.0, width - 10)
    left = min(max([least, *(_CHARACTER * len(row.name) + 10 for row in rows)]), most)
    low = min(min([row.low, *row.values]) for row in rows)
    high = max(max([row.high, *row.values]) for row in rows)
    pad = (high - low) * 0.06 or 0.5
    domain = (max(low - pad, 0.0), min(high + pad, 100.0))
    bottom = 6 + 58 * len(rows)
    x = _scale(domain, (left, right))
    parts: list[Markup] = []
    for value in ticks(*domain, 7 if wide else 5):
        parts += [
            _path(f"M{_n(x(value))} 6V{_n(bottom)}", "grid"),
            _text(x(value), bottom + 14, axis_number(value), "mid"),
        ]
    parts.append(_text(right, bottom + 30, caption, "end"))
    for number, row in enumerate(rows):
        named = replace(row, name=_cut(row.name, left - 10))
        parts.append(_seed_row(named, x, 26 + 58 * number, width if wide else None, domain))
    return Drawing(width, bottom + 36, label, tuple(parts), css)


def _cut(text: str, room: float) -> str:
    """The text, cut with an ellipsis where it is wider than the room."""
    most = int(room / _CHARACTER)
    return text if len(text) <= most else text[: most - 1].rstrip(" ,") + "…"


def _seed_row(
    row: SeedRow, x: Callable[[float], float], y: float, text_at: float | None, domain: tuple[float, float]
) -> Markup:
    low, high = (x(min(max(end, domain[0]), domain[1])) for end in (row.low, row.high))
    parts = [_text(0, y + 13, row.name, "run"), _whisker(low, high, y, 4), _diamond(x(row.mean), y, 6.6)]
    if text_at is not None:
        parts += [_text(text_at, y + 6, f"{row.mean:.2f} %", "val end")]
        parts += [_text(text_at, y + 21, between(f"{row.low:.2f}", f"{row.high:.2f}"), "end")]
    placed: list[tuple[float, int]] = []
    for value in sorted(row.values):
        level = 0
        while any(abs(x(value) - other) < 10 and level == taken for other, taken in placed):
            level += 1
        placed.append((x(value), level))
        parts.append(marker(row.index, x(value), y + 17 + 9 * min(level, 2), css="pt open", radius=4.5))
    return _group(f"r{colour_of(row.index)}", parts)


# Figures for plotly.js -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochPoint:
    """What a curve shows of one epoch. Accuracies and losses as stored; ``interval`` (low, high) of the test accuracy."""

    epoch: int
    seconds: float  # of training, from the start of the run
    images: int  # training images seen from the start of the run
    test_accuracy: float
    interval: tuple[float, float]
    train_accuracy: float
    test_loss: float
    train_loss: float
    flops: float | None = None  # of training, from the start of the run; None where they were not recorded

    def at(self, axis: str) -> float | None:
        """The place on an axis of ``AXES``."""
        places = {
            "epoch": float(self.epoch),
            "seconds": self.seconds,
            "images": float(self.images),
            "flops": self.flops,
        }
        return places[axis]


@dataclass(frozen=True)
class RunCurve:
    """The epochs of one run, and its number on the page."""

    index: int
    name: str
    points: list[EpochPoint] = field(default_factory=list)


AXES = ("epoch", "seconds", "images", "flops")
_X_FORMATS = {"epoch": ",~r", "seconds": ",~r", "images": ",~r", "flops": ".3~s"}


def axis_title(axis: str) -> str:
    """What is counted along the axis."""
    return {
        "epoch": _("epoch"), "seconds": _("seconds of training"), "images": _("training images seen"),
        "flops": _("training FLOPs, nominal"),
    }[axis]  # fmt: skip


def trace(index: int | None, name: str, x: Sequence[float], y: Sequence[Any], **more: Any) -> dict[str, Any]:
    """A line with marks in the colour of a run, or in the grey of what is secondary."""
    token = "ink-3" if index is None else f"run-{colour_of(index)}"
    dash = "2px,3px" if index is None else _DASHES[dash_of(index)]
    symbol = "circle-open" if index is None else _SYMBOLS[marker_of(index)]
    made = {
        "type": "scatter", "mode": "lines+markers", "cliponaxis": False, "name": name, "x": list(x), "y": list(y),
        "meta": {"color": token, "index": index}, "line": {"width": 2, "dash": dash},
        "marker": {"symbol": symbol, "size": 7, "line": {"width": 1.5}},
    }  # fmt: skip
    return made | more


def band(index: int, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """The area between two lines."""
    return {
        "type": "scatter", "mode": "lines", "x": [*x, *reversed(x)], "y": [*high, *reversed(low)], "fill": "toself",
        "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False,
        "meta": {"color": f"run-{colour_of(index)}", "fill": 0.14},
    }  # fmt: skip


def layout(
    axis: str, *, title: str = "", log_values: Iterable[float] | None = None, x_range: list[float] | None = None,
    epochs: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Axes without colours; ``epochs`` is the highest whole number of an axis that counts epochs, else 0."""
    x_axis: dict[str, Any] = {"title": {"text": title or axis_title(axis)}, "tickformat": _X_FORMATS[axis]}
    if x_range:
        x_axis["range"] = x_range
    if epochs:
        x_axis |= {"tick0": 0 if epochs > 10 else 1, "dtick": max(1, round(nice_step(epochs, 10)))}
    y_axis: dict[str, Any] = {"tickformat": ",~r"}
    if log_values is not None:
        ticks = _log_ticks(log_values)
        y_axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    return {"xaxis": x_axis, "yaxis": y_axis, "uirevision": "kept", "hovermode": "closest"}


def _log_ticks(values: Iterable[float]) -> list[float]:
    """Round numbers for a logarithmic axis, the more the narrower its range is, so that two of them always show."""
    known = [value for value in values if value > 0]
    ratio = max(known) / min(known) if known else 1.0
    digits = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if ratio < 4 else (1, 2, 5) if ratio < 40 else (1,)
    return [digit * 10.0**power for power in range(-8, 10) for digit in digits]


def hover(name: str, value: str, axis: str = "epoch") -> str:
    """What stands beside the pointer: the name as it was typed, the place, the value."""
    escaped = name.replace("&", "&amp;").replace("<", "&lt;")
    return f"<b>{escaped}</b> %{{x:{_X_FORMATS[axis]}}}: {value}<extra></extra>"


def accuracy_figure(curve: RunCurve, *, last: int) -> dict[str, Any]:
    """Test accuracy of a run in per cent with the band of its 95 % interval, and that during training, dotted.

    ``last`` is the epoch at which the axis ends, for a run that is still on its way.
    """
    x = [float(point.epoch) for point in curve.points]
    low, high = ([100 * point.interval[i] for point in curve.points] for i in (0, 1))
    training, test = ([100 * getattr(p, name) for p in curve.points] for name in ("train_accuracy", "test_accuracy"))
    traces = [trace(None, _("training"), x, training, hovertemplate=hover(_("training"), "%{y:.2f} %"))]
    if x:
        traces.append(band(curve.index, x, low, high))
    text = [between(f"{a:.2f}", f"{b:.2f}") for a, b in zip(low, high, strict=True)]
    shown = hover(_("test"), "%{y:.2f} % (%{text})")
    traces.append(trace(curve.index, _("test"), x, test, text=text, hovertemplate=shown))
    axes = layout("epoch", x_range=[0.8, last + 0.2] if last > 1 else None, epochs=last)
    if not x:
        axes["yaxis"]["range"] = [0, 100]
    return {"data": traces, "layout": axes}


def step_figure(
    steps: Sequence[int], losses: Sequence[float], curve: RunCurve, *, steps_per_epoch: int, total_steps: int
) -> dict[str, Any]:
    """Loss on a logarithmic axis by step: that of single training batches as a thin line, the test loss as marks."""
    shown = [(float(step), loss) for step, loss in zip(steps, losses, strict=True) if loss > 0 and math.isfinite(loss)]
    thin = trace(
        None, _("training"), [step for step, _loss in shown], [loss for _step, loss in shown], mode="lines",
        line={"width": 1.25, "dash": "solid"}, hovertemplate=hover(_("training"), "%{y:.4f}"),
    )  # fmt: skip
    points = [point for point in curve.points if point.test_loss > 0]
    x = [float(point.epoch * steps_per_epoch) for point in points]
    test = trace(curve.index, _("test"), x, [p.test_loss for p in points], hovertemplate=hover(_("test"), "%{y:.4f}"))
    title = _("step ({n} an epoch)").format(n=f"{steps_per_epoch:,}")
    values = [*(loss for _step, loss in shown), *(point.test_loss for point in points)]
    return {
        "data": [thin, test], "layout": layout("epoch", title=title, log_values=values, x_range=[0, total_steps]),
    }  # fmt: skip


# The same figures as SVG, for what is printed -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """One axis of a figure: its ends, and the place of a value on the drawing."""

    low: float
    high: float
    is_log: bool
    place: tuple[float, float]

    def at(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.is_log:
            scale = _scale((math.log10(self.low), math.log10(self.high)), self.place)
            return scale(math.log10(value))
        return _scale((self.low, self.high), self.place)(value)


def figure_drawing(figure: dict[str, Any], label: str, *, width: float = 520, height: float = 260) -> Drawing:
    """A figure for plotly.js as SVG: lines, bands and marks; what lies outside its axes is cut off."""
    left, right, top, bottom = 46.0, width - 12, 10.0, height - 40
    x = _axis_of(figure, "x", (left, right))
    y = _axis_of(figure, "y", (bottom, top))
    y_ticks = figure["layout"]["yaxis"].get("tickvals") or ticks(y.low, y.high, 6)
    parts: list[Markup] = []
    for value in y_ticks:
        if y.low <= value <= y.high:
            parts += [
                _path(f"M{_n(left)} {_n(y.at(value))}H{_n(right)}", "grid"),
                _text(left - 6, y.at(value) + 3.5, axis_number(value), "end"),
            ]
    parts.append(_path(f"M{_n(left)} {_n(bottom)}H{_n(right)}", "axis"))
    x_ticks = _whole_ticks(figure["layout"]["xaxis"], x) or ticks(x.low, x.high, 6)
    parts += [_text(x.at(value), bottom + 15, axis_number_with_prefix(value), "mid") for value in x_ticks]
    parts.append(_text(right, bottom + 32, figure["layout"]["xaxis"]["title"]["text"], "end"))
    drawn = sorted(figure["data"], key=lambda one: "fill" not in one)
    parts += [_drawn_trace(one, x, y) for one in drawn]
    return Drawing(width, height, label, tuple(parts), "chart")


def _whole_ticks(told: dict[str, Any], axis: _Axis) -> list[float]:
    """The ticks of an axis that counts epochs; none where it does not."""
    if "dtick" not in told:
        return []
    first, step = told["tick0"], told["dtick"]
    return [float(value) for value in range(first, math.floor(axis.high) + 1, step) if value >= axis.low]


def _axis_of(figure: dict[str, Any], name: str, place: tuple[float, float]) -> _Axis:
    """The axis from its range, else from the lines with some room around them."""
    told = figure["layout"][f"{name}axis"]
    is_log = told.get("type") == "log"
    values = [v for one in figure["data"] for v in one[name] if v is not None and (v > 0 or not is_log)]
    low, high = told.get("range") or (min(values, default=0.0), max(values, default=1.0))
    if is_log:
        low, high = (10**low, 10**high) if "range" in told else (low / 1.1, high * 1.1)
        return _Axis(low, high, True, place) if 0 < low < high else _Axis(0.1, 1.0, True, place)
    if name == "y" and "range" not in told:
        pad = (high - low) * 0.06 or 0.5
        low, high = (0.0 if told.get("rangemode") == "tozero" else low - pad), high + pad
    return _Axis(low, high if high > low else low + 1, False, place)


def _drawn_trace(one: dict[str, Any], x: _Axis, y: _Axis) -> Markup:
    points = [(x.at(a), y.at(b)) for a, b in zip(one["x"], one["y"], strict=True) if b is not None]
    colour = (
        "r" + str(one["meta"]["color"]).removeprefix("run-") if one["meta"]["color"].startswith("run-") else "faint"
    )
    places = " ".join(f"{_n(a)},{_n(b)}" for a, b in points)
    if "fill" in one:
        return _group(colour, [Markup('<polygon class="area" points="{}"/>').format(places)])
    dash, opacity = one["line"]["dash"].replace("px", "").replace(",", " "), one.get("opacity", 1)
    # On a group, as a style sheet that sets the polyline's own width would win over its attributes.
    line = Markup(
        '<g stroke-width="{}" stroke-dasharray="{}" opacity="{}"><polyline class="ln own" points="{}"/></g>'
    ).format(one["line"]["width"], "none" if dash == "solid" else dash, opacity, places)
    index = one["meta"]["index"]
    marks = points if "markers" in one["mode"] and index is not None and len(points) <= 30 else []
    return _group(colour, [line, *(marker(index, a, b, radius=3.5) for a, b in marks)])


# Differences in a table -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strips:
    """Small forest plots for the rows of a table, all on one scale around zero; values in points."""

    low: float
    high: float
    margin: float | None = None
    width: float = 180.0

    @classmethod
    def around(cls, intervals: Iterable[tuple[float, float]], margin: float | None = None) -> Strips:
        """The scale that holds all intervals, zero and the margin."""
        ends = [end for interval in intervals for end in interval] + [-(margin or 0.5), margin or 0.5]
        pad = (max(ends) - min(ends)) * 0.04
        return cls(min(ends) - pad, max(ends) + pad, margin)

    @property
    def _x(self) -> Callable[[float], float]:
        return _scale((self.low, self.high), (6, self.width - 6))

    def head(self) -> Drawing:
        """The axis above the rows."""
        parts = [
            _text(self._x(value), 12, axis_number(value) if value <= 0 else "+" + axis_number(value), "mid")
            for value in ticks(self.low, self.high, 4)
        ]
        return Drawing(self.width, 16, _("difference in points"), tuple(parts), "chart diffstrip")

    def row(self, difference: float, interval: tuple[float, float], favours: int | None) -> Drawing:
        """One difference with its interval, in the colour of the run that it favours."""
        x, height = self._x, 22.0
        parts = []
        if self.margin is not None:
            parts.append(_rect(x(-self.margin), 0, x(self.margin) - x(-self.margin), height, "margin"))
        parts.append(_path(f"M{_n(x(0))} 0V{_n(height)}", "zero"))
        colour = "faint" if favours is None else f"r{colour_of(favours)}"
        low, high = (x(end) for end in interval)
        parts.append(_group(colour, [_whisker(low, high, height / 2, 4), _diamond(x(difference), height / 2, 5)]))
        label = f"{signed(difference)}, {between(signed(interval[0]), signed(interval[1]))}"
        return Drawing(self.width, height, label, tuple(parts), "chart diffstrip")
