"""Charts: geometry as SVG with classes (colour is CSS, so that themes just work), and figures for plotly.js as JSON.

Nothing here reads runs or decides what a result means; callers bring numbers and words. Figures name colours by token
("run-1"); static/charts.js fills them in and redraws on a change of theme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from trainer.i18n import _

MARKS = 8  # runs on one page that letter, colour, marker and dash keep apart
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "circle-open", "x", "line-ew-open", "line-ns-open")
_DASHES = ("solid", "solid", "6px,3px", "6px,3px", "2px,3px", "2px,3px", "8px,3px,2px,3px", "8px,3px,2px,3px")
_LINE_CLASSES = ("", "", "dash", "dash", "dot", "dot", "dashdot", "dashdot")
MINUS = "−"
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
    match index % MARKS:
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


def plain(value: float) -> str:
    """A number of an axis: no trailing zeros, thousands with commas."""
    return f"{round(value):,}" if abs(value) >= 1000 else f"{value:.6g}".replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign: +4.83, −0.01, 0.00."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else ("+" if value > 0 else MINUS) + text


def between(low: str, high: str) -> str:
    """An interval in words."""
    return _("{low} to {high}").format(low=low, high=high)


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
            _text(left - 6, y(value) + 3.5, plain(value), "end"),
        ]
    parts.append(_path(f"M{_n(left)} {_n(bottom)}H{_n(right)}", "axis"))
    steps = _epoch_ticks(per_epoch, total, 5 if width > 400 else 3)
    parts += [_text(x(s), bottom + 15, f"{s:,}", "end" if s == total else "mid") for s in steps]
    caption = _("step ({n} an epoch)").format(n=f"{per_epoch:,}")
    parts.append(_text(right, bottom + 30, caption, "end"))
    for curve in curves:
        line = _line([(x(a), y(b)) for a, b in curve.points], _LINE_CLASSES[curve.index % MARKS])
        parts.append(_group(f"r{curve.index % MARKS + 1}", [line]))
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
        level=plain(level * 100), rows="; ".join(f"{row.title} {row.words()}" for row in rows)
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
        digits = plain(value) if value <= 0 else "+" + plain(value)
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
    text = _("±{margin}: too small to matter").format(margin=plain(margin))
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
    colour = "r5" if row.favours is None else f"r{row.favours % MARKS + 1}"
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
    left, right = (84.0, width - 104) if wide else (62.0, width - 10)
    low = min(min([row.low, *row.values]) for row in rows)
    high = max(max([row.high, *row.values]) for row in rows)
    pad = (high - low) * 0.06 or 0.5
    domain = (max(low - pad, 0.0), min(high + pad, 100.0))
    bottom = 6 + 58 * len(rows)
    x = _scale(domain, (left, right))
    parts: list[Markup] = []
    for value in ticks(*domain, 7 if wide else 5):
        parts += [_path(f"M{_n(x(value))} 6V{_n(bottom)}", "grid"), _text(x(value), bottom + 14, plain(value), "mid")]
    parts.append(_text(right, bottom + 30, caption, "end"))
    for number, row in enumerate(rows):
        parts.append(_seed_row(row, x, 26 + 58 * number, width if wide else None, domain))
    return Drawing(width, bottom + 36, label, tuple(parts), css)


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
    return _group(f"r{row.index % MARKS + 1}", parts)


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

    def at(self, axis: str) -> float:
        return {"epoch": float(self.epoch), "seconds": self.seconds, "images": float(self.images)}[axis]


@dataclass(frozen=True)
class RunCurve:
    """The epochs of one run, and its number on the page."""

    index: int
    name: str
    points: list[EpochPoint] = field(default_factory=list)


AXES = ("epoch", "seconds", "images")


def axis_title(axis: str) -> str:
    return {"epoch": _("epoch"), "seconds": _("seconds of training"), "images": _("training images seen")}[axis]


def _trace(index: int | None, name: str, x: list[float], y: list[Any], **more: Any) -> dict[str, Any]:
    """A line with marks in the colour of a run, or in the grey of what is secondary."""
    token = "ink-3" if index is None else f"run-{index % MARKS + 1}"
    dash = "2px,3px" if index is None else _DASHES[index % MARKS]
    symbol = "circle-open" if index is None else _SYMBOLS[index % MARKS]
    trace = {
        "type": "scatter", "mode": "lines+markers", "cliponaxis": False, "name": name, "x": x, "y": y, "meta": {"color": token},
        "line": {"width": 2, "dash": dash}, "marker": {"symbol": symbol, "size": 7, "line": {"width": 1.5}},
    }  # fmt: skip
    return trace | more


def _band(index: int, x: list[float], low: list[float], high: list[float]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": x + x[::-1], "y": high + low[::-1], "fill": "toself",
        "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False,
        "meta": {"color": f"run-{index % MARKS + 1}", "fill": 0.14},
    }  # fmt: skip


def _layout(
    x_title: str, *, log_values: Iterable[float] | None = None, x_range: list[float] | None = None, epochs: int = 0
) -> dict[str, Any]:
    """Axes without colours; ``epochs`` is the highest whole number of an axis that counts epochs, else 0."""
    x_axis: dict[str, Any] = {"title": {"text": x_title}, "tickformat": ",~r"}
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


def accuracy_figure(
    curves: Sequence[RunCurve], *, axis: str = "epoch", train: bool = False, last: int | None = None
) -> dict[str, Any]:
    """Test accuracy in per cent with the band of its 95 % interval; with ``train``, that during training, dotted.

    ``last`` is the epoch at which the axis ends, for a run that is still on its way.
    """
    traces: list[dict[str, Any]] = []
    for curve in curves:
        x = [point.at(axis) for point in curve.points]
        if train:
            y = [100 * point.train_accuracy for point in curve.points]
            traces.append(_trace(None, _("training"), x, y, hovertemplate=_hover(_("training"), "%{y:.2f} %")))
        low, high = ([100 * point.interval[i] for point in curve.points] for i in (0, 1))
        if x:
            traces.append(_band(curve.index, x, low, high))
        text = [between(f"{a:.2f}", f"{b:.2f}") for a, b in zip(low, high, strict=True)]
        y = [100 * point.test_accuracy for point in curve.points]
        name = _("test") if train else curve.name
        traces.append(_trace(curve.index, name, x, y, text=text, hovertemplate=_hover(name, "%{y:.2f} % (%{text})")))
    layout = _layout(axis_title(axis), x_range=_epoch_range(axis, last), epochs=_last_epoch(curves, axis, last))
    if not any(curve.points for curve in curves):
        layout["yaxis"]["range"] = [0, 100]
    return {"data": traces, "layout": layout}


def _last_epoch(curves: Sequence[RunCurve], axis: str, last: int | None = None) -> int:
    if axis != "epoch":
        return 0
    return last or max((curve.points[-1].epoch for curve in curves if curve.points), default=1)


def _hover(name: str, value: str) -> str:
    escaped = name.replace("&", "&amp;").replace("<", "&lt;")
    return f"<b>{escaped}</b> %{{x:,~r}}: {value}<extra></extra>"


def _epoch_range(axis: str, last: int | None) -> list[float] | None:
    return [0.8, last + 0.2] if axis == "epoch" and last is not None and last > 1 else None


def loss_figure(curves: Sequence[RunCurve], *, axis: str = "epoch") -> dict[str, Any]:
    """Test loss as lines, training loss dotted in the same colour."""
    traces = []
    for curve in curves:
        x = [point.at(axis) for point in curve.points]
        title = _("{name}, training").format(name=curve.name)
        y = [point.train_loss for point in curve.points]
        dotted = {
            "mode": "lines",
            "line": {"width": 1.25, "dash": "1px,3px"},
            "hovertemplate": _hover(title, "%{y:.4f}"),
        }
        traces.append(_trace(curve.index, title, x, y, **dotted))
        y = [point.test_loss for point in curve.points]
        traces.append(_trace(curve.index, curve.name, x, y, hovertemplate=_hover(curve.name, "%{y:.4f}")))
    layout = _layout(axis_title(axis), epochs=_last_epoch(curves, axis))
    return {"data": traces, "layout": layout | {"yaxis": {"rangemode": "tozero"}}}


def step_figure(
    steps: Sequence[int], losses: Sequence[float], curve: RunCurve, *, steps_per_epoch: int, total_steps: int
) -> dict[str, Any]:
    """Loss on a logarithmic axis by step: that of single training batches as a thin line, the test loss as marks."""
    shown = [(float(step), loss) for step, loss in zip(steps, losses, strict=True) if loss > 0 and math.isfinite(loss)]
    thin = _trace(
        None, _("training"), [step for step, _loss in shown], [loss for _step, loss in shown], mode="lines",
        line={"width": 1.25, "dash": "solid"}, hovertemplate=_hover(_("training"), "%{y:.4f}"),
    )  # fmt: skip
    points = [point for point in curve.points if point.test_loss > 0]
    x = [float(point.epoch * steps_per_epoch) for point in points]
    test = _trace(curve.index, _("test"), x, [p.test_loss for p in points], hovertemplate=_hover(_("test"), "%{y:.4f}"))
    title = _("step ({n} an epoch)").format(n=f"{steps_per_epoch:,}")
    values = [*(loss for _step, loss in shown), *(point.test_loss for point in points)]
    return {"data": [thin, test], "layout": _layout(title, log_values=values, x_range=[0, total_steps])}
