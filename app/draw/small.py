"""Small drawings in tables and cards: icons, strips of accuracies, sparklines, bars of images per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from markupsafe import Markup

from app.draw import svg
from app.draw.svg import Drawing
from app.words import number
from trainer.i18n import _

STRIP_LEFT, STRIP_RIGHT = 3.0, 109.0  # of a strip 112 wide and 20 high
_NICE = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
_BARS_WIDTH, _HIGHEST_BAR, _BARS_BOTTOM = 300, 32, 46


@dataclass(frozen=True)
class Scale:
    """A scale in percent that all strips of a table share: both ends, and one tick between them."""

    low: float
    high: float
    tick: float

    def x(self, fraction: float) -> float:
        """The position of an accuracy (0 to 1) on the strip; values beyond its ends are placed at the ends."""
        share = (100 * fraction - self.low) / (self.high - self.low)
        return STRIP_LEFT + min(1.0, max(0.0, share)) * (STRIP_RIGHT - STRIP_LEFT)

    @property
    def tick_x(self) -> float:
        return self.x(self.tick / 100)


def scale_of(intervals: Sequence[Sequence[float]]) -> Scale:
    """A scale with round ends that holds all ``intervals`` ([low, high] in fractions); 0 to 100 without any."""
    if not intervals:
        return Scale(0, 100, 50)
    least, most = 100 * min(i[0] for i in intervals), 100 * max(i[1] for i in intervals)
    step = next(nice for nice in _NICE if nice >= (most - least) / 10 or nice == _NICE[-1])
    low, high = max(0.0, math.floor(least / step) * step), min(100.0, math.ceil(most / step) * step)
    if high - low < step:
        low, high = max(0.0, high - step), min(100.0, low + step)
    middle = (low + high) / 2
    coarse = round(middle / (5 * step)) * 5 * step
    margin = (high - low) / 4  # nearer to an end the labels would overlap
    tick = coarse if low + margin <= coarse <= high - margin else round(middle / step) * step
    return Scale(round(low, 6), round(high, 6), round(tick if low < tick < high else middle, 6))


def strip(scale: Scale, value: float, interval: Sequence[float] | None, seeds: Sequence[float] = ()) -> Markup:
    """An accuracy (0 to 1) with its interval, on the scale of its table; ``seeds`` are the values behind a mean."""
    low, high = (scale.x(end) for end in interval or (value, value))
    point = f"{scale.x(value):.1f}"
    parts = [
        svg.path(f"M3 10H109M{scale.tick_x:.1f} 7v6", "axis"),
        *(svg.circle(f"{scale.x(seed):.1f}", 10, 3, "dot") for seed in seeds),
        svg.path(f"M{low:.1f} 10H{high:.1f}M{low:.1f} 7v6M{high:.1f} 7v6", "ci"),
        svg.path(f"M{point} 5.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z", "pt") if seeds else svg.circle(point, 10, 3, "pt"),
    ]
    return svg.decoration("strip", "0 0 112 20", parts)


def spark(values: Sequence[float]) -> Drawing | str:
    """A line through ``values`` (losses), the largest at the top; empty for fewer than two finite ones."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    least, span = min(finite), max(finite) - min(finite) or 1.0
    across, down = 82 / (len(finite) - 1), 16 / span
    line = "L".join([f"{2 + across * i:.1f} {18 - down * (value - least):.1f}" for i, value in enumerate(finite)])
    end = svg.circle("84.0", f"{18 - down * (finite[-1] - least):.1f}", 2)
    label = _("training loss, from {first} to {last}").format(first=f"{finite[0]:.3g}", last=f"{finite[-1]:.3g}")
    return Drawing(88, 20, label, (svg.path(f"M{line}"), end), "spark")


@cache
def icon(name: str) -> Markup:
    """The icon with that name in templates/_partials/sprite.html."""
    return Markup('<svg class="icon" aria-hidden="true"><use href="#i-{}"/></svg>').format(name)


def class_bars(names: Sequence[str], counts: Sequence[int], label: str, *, are_named: bool) -> Drawing | str:
    """Images per class as bars, with counts and names where there is room for them; empty without classes."""
    if not counts:
        return ""
    column, most = _BARS_WIDTH / len(counts), max(*counts, 1)
    parts: list[Markup] = []
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        height = _HIGHEST_BAR * count / most
        top, middle = _BARS_BOTTOM - height, f"{(i + 0.5) * column:.1f}"
        x, y, width, tall = (f"{value:.1f}" for value in (i * column + column * 0.1, top, column * 0.8, height))
        parts.append(svg.rect(x, y, width, tall, "bar"))
        if are_named:
            parts.append(svg.text(middle, f"{top - 3:.1f}", number(count), "mid", size=8))
            parts.append(svg.text(middle, 57, _cut(name, max(1, int(column / 5))), "mid", size=9))
    return Drawing(_BARS_WIDTH, 59, label, tuple(parts))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
