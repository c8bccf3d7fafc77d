"""Drawings of a comparison: forest plots, the accuracies of seeds, and differences in the rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from app.draw import svg
from app.draw.markers import colour_of, marker
from app.draw.svg import CHARACTER_WIDTH, Drawing, ResponsiveDrawing, Scale
from app.words import axis_number, between, signed
from trainer.i18n import _

# The forest plot -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForestRow:
    """One difference with its interval, in percentage points."""

    title: str
    detail: str
    difference: float
    low: float
    high: float
    favours: int | None = None  # index of the run that is better; None where neither is

    @property
    def interval_words(self) -> str:
        return between(signed(self.low), signed(self.high))


def forest_plot(
    rows: Sequence[ForestRow], *, margin: float, left: str, right: str, level: float = 0.95
) -> ResponsiveDrawing:
    """Differences around zero with the margin (in points); ``left`` and ``right`` name the run that each side favours."""
    label = _("difference with {level} % interval: {rows} points").format(
        level=axis_number(level * 100),
        rows="; ".join(f"{row.title} {signed(row.difference)}, {row.interval_words}" for row in rows),
    )
    sides = (_("{name} better").format(name=left), _("{name} better").format(name=right))
    return ResponsiveDrawing(_forest_wide(rows, margin, sides, label), _forest_narrow(rows, margin, sides, label))


def _forest_wide(rows: Sequence[ForestRow], margin: float, sides: tuple[str, str], label: str) -> Drawing:
    bottom = 66 + 44 * (len(rows) - 1)
    domain = _forest_domain(rows, margin)
    x = svg.scale(domain, (226, 578))
    parts = _forest_frame(domain, margin, x, bottom, 7) + _side_names(sides, x(0), 720)
    parts += [svg.text(578, bottom + 32, _difference_caption(), "end"), *_margin_key(margin, 0, bottom + 32)]
    for number, row in enumerate(rows):
        y = 44 + 44 * number
        parts += [
            svg.text(0, y - 2, row.title, "ttl"),
            svg.text(0, y + 13, row.detail),
            svg.text(720, y - 2, _("{n} points").format(n=signed(row.difference)), "val end"),
            svg.text(720, y + 13, row.interval_words, "end"),
            _forest_mark(row, x, y),
        ]
    return Drawing(720, bottom + 40, label, tuple(parts), "chart wide")


def _forest_narrow(rows: Sequence[ForestRow], margin: float, sides: tuple[str, str], label: str) -> Drawing:
    bottom = 86 + 64 * (len(rows) - 1)
    domain = _forest_domain(rows, margin)
    x = svg.scale(domain, (8, 332))
    parts = _forest_frame(domain, margin, x, bottom, 5) + _side_names(sides, x(0), 340)
    parts += [svg.text(332, bottom + 32, _difference_caption(), "end"), *_margin_key(margin, 8, bottom + 51)]
    for number, row in enumerate(rows):
        y = 64 + 64 * number
        parts += [
            svg.text(8, y - 22, row.title, "ttl"),
            svg.text(332, y - 22, f"{signed(row.difference)} ({row.interval_words})", "end halo"),
            _forest_mark(row, x, y),
        ]
    return Drawing(340, bottom + 58, label, tuple(parts), "chart narrow")


def _difference_caption() -> str:
    return _("difference in test accuracy, percentage points")


def _forest_domain(rows: Sequence[ForestRow], margin: float) -> tuple[float, float]:
    low, high = min([-margin, *(row.low for row in rows)]), max([margin, *(row.high for row in rows)])
    pad = (high - low) * 0.12
    return low - pad, high + pad


def _forest_frame(domain: tuple[float, float], margin: float, x: Scale, bottom: float, count: int) -> list[Markup]:
    """The margin, the grid and the line at zero."""
    top = 16
    parts = [svg.rect(x(-margin), top, x(margin) - x(-margin), bottom - top, "margin")]
    for value in svg.ticks(*domain, count):
        parts.append(svg.vertical(x(value), top, bottom, "grid"))
        parts.append(svg.text(x(value), bottom + 14, _signed_tick(value), "mid"))
    return [*parts, svg.vertical(x(0), top, bottom, "zero")]


def _signed_tick(value: float) -> str:
    return axis_number(value) if value <= 0 else "+" + axis_number(value)


def _side_names(sides: tuple[str, str], zero: float, width: float) -> list[Markup]:
    """Which run each side of zero favours. A name that does not fit on its side is left out; the other one is enough."""
    left, right = f"{sides[0]} ←", f"→ {sides[1]}"
    parts = []
    if zero - 8 - CHARACTER_WIDTH * len(left) >= 0:
        parts.append(svg.text(zero - 8, 11, left, "end"))
    if zero + 8 + CHARACTER_WIDTH * len(right) <= width or not parts:
        parts.append(svg.text(zero + 8, 11, right))
    return parts


def _margin_key(margin: float, x: float, y: float) -> list[Markup]:
    text = _("±{margin}: too small to matter").format(margin=axis_number(margin))
    return [svg.rect(x, y - 9, 11, 11, "margin"), svg.text(x + 16, y, text)]


def _forest_mark(row: ForestRow, x: Scale, y: float) -> Markup:
    colour = "r5" if row.favours is None else f"r{colour_of(row.favours)}"
    return svg.group(colour, [svg.whisker(x(row.low), x(row.high), y), svg.diamond(x(row.difference), y, 6.6)])


# Seeds ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedRow:
    """The accuracies of one recipe's seeds in percent, with the mean and its interval."""

    index: int
    name: str
    values: list[float]
    mean: float
    low: float
    high: float


def seeds_chart(rows: Sequence[SeedRow], *, caption: str) -> ResponsiveDrawing:
    """Each seed as an open marker, the mean and its interval as a diamond with whiskers."""
    label = _("{caption}: each seed as a mark, mean and 95 % interval").format(caption=caption)
    return ResponsiveDrawing(
        _seeds(rows, 600, caption, label, "chart wide"), _seeds(rows, 340, caption, label, "chart narrow")
    )


def _seeds(rows: Sequence[SeedRow], width: float, caption: str, label: str, css: str) -> Drawing:
    wide = width > 400
    least, most, right = (84.0, 210.0, width - 104) if wide else (62.0, 140.0, width - 10)
    left = min(max([least, *(CHARACTER_WIDTH * len(row.name) + 10 for row in rows)]), most)
    domain = _seeds_domain(rows)
    bottom = 6 + 58 * len(rows)
    x = svg.scale(domain, (left, right))
    parts: list[Markup] = []
    for value in svg.ticks(*domain, 7 if wide else 5):
        parts += [
            svg.vertical(x(value), 6, bottom, "grid"),
            svg.text(x(value), bottom + 14, axis_number(value), "mid"),
        ]
    parts.append(svg.text(right, bottom + 30, caption, "end"))
    for number, row in enumerate(rows):
        y = 26 + 58 * number
        low, high = (x(min(max(end, domain[0]), domain[1])) for end in (row.low, row.high))
        summary = [svg.whisker(low, high, y, 4), svg.diamond(x(row.mean), y, 6.6)]
        words = _mean_words(row, width, y) if wide else []
        name = svg.text(0, y + 13, _shortened(row.name, left - 10), "run")
        parts.append(svg.group(f"r{colour_of(row.index)}", [name, *summary, *words, *_seed_marks(row, x, y + 17)]))
    return Drawing(width, bottom + 36, label, tuple(parts), css)


def _seeds_domain(rows: Sequence[SeedRow]) -> tuple[float, float]:
    low = min(min([row.low, *row.values]) for row in rows)
    high = max(max([row.high, *row.values]) for row in rows)
    pad = (high - low) * 0.06 or 0.5
    return max(low - pad, 0.0), min(high + pad, 100.0)


def _shortened(text: str, room: float) -> str:
    """The text, cut with an ellipsis where it is wider than the room."""
    most = int(room / CHARACTER_WIDTH)
    return text if len(text) <= most else text[: most - 1].rstrip(" ,") + "…"


def _mean_words(row: SeedRow, x: float, y: float) -> list[Markup]:
    interval = between(f"{row.low:.2f}", f"{row.high:.2f}")
    return [svg.text(x, y + 6, f"{row.mean:.2f} %", "val end"), svg.text(x, y + 21, interval, "end")]


def _seed_marks(row: SeedRow, x: Scale, y: float) -> list[Markup]:
    """One marker a seed, on up to three levels so that close ones do not overlap."""
    parts = []
    placed: list[tuple[float, int]] = []
    for value in sorted(row.values):
        level = 0
        while any(abs(x(value) - other) < 10 and level == taken for other, taken in placed):
            level += 1
        placed.append((x(value), level))
        parts.append(marker(row.index, x(value), y + 9 * min(level, 2), css="pt open"))
    return parts


# Differences in a table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DifferenceStrips:
    """Small forest plots for the rows of a table, all on one scale around zero; values in points."""

    low: float
    high: float
    margin: float | None = None
    width: float = 180.0

    @classmethod
    def around(cls, intervals: Iterable[tuple[float, float]], margin: float | None = None) -> DifferenceStrips:
        """The scale that holds all intervals, zero and the margin."""
        ends = [end for interval in intervals for end in interval] + [-(margin or 0.5), margin or 0.5]
        pad = (max(ends) - min(ends)) * 0.04
        return cls(min(ends) - pad, max(ends) + pad, margin)

    @property
    def _x(self) -> Scale:
        return svg.scale((self.low, self.high), (6, self.width - 6))

    def head(self) -> Drawing:
        """The axis above the rows."""
        parts = [
            svg.text(self._x(value), 12, _signed_tick(value), "mid") for value in svg.ticks(self.low, self.high, 4)
        ]
        return Drawing(self.width, 16, _("difference in points"), tuple(parts), "chart diffstrip")

    def row(self, difference: float, interval: tuple[float, float], favours: int | None) -> Drawing:
        """One difference with its interval, in the colour of the run that it favours."""
        x, height = self._x, 22.0
        parts = []
        if self.margin is not None:
            parts.append(svg.rect(x(-self.margin), 0, x(self.margin) - x(-self.margin), height, "margin"))
        parts.append(svg.vertical(x(0), 0, height, "zero"))
        colour = "faint" if favours is None else f"r{colour_of(favours)}"
        low, high = (x(end) for end in interval)
        marks = [svg.whisker(low, high, height / 2, 4), svg.diamond(x(difference), height / 2, 5)]
        parts.append(svg.group(colour, marks))
        label = f"{signed(difference)}, {between(signed(interval[0]), signed(interval[1]))}"
        return Drawing(self.width, height, label, tuple(parts), "chart diffstrip")
