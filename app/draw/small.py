"""The small drawings in tables and cards, made on the server: icons, strips, sparklines, bars. Colours are CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from markupsafe import Markup, escape

from trainer.i18n import _

STRIP_LEFT, STRIP_RIGHT = 3.0, 109.0  # of a strip 112 wide and 20 high
_NICE = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class Scale:
    """A scale in per cent shared by all strips of a table: both ends, and one tick between them."""

    low: float
    high: float
    tick: float

    def x(self, fraction: float) -> float:
        """Where an accuracy (0..1) stands on the strip, in its units; kept inside the strip."""
        share = (100 * fraction - self.low) / (self.high - self.low)
        return STRIP_LEFT + min(1.0, max(0.0, share)) * (STRIP_RIGHT - STRIP_LEFT)

    @property
    def tick_x(self) -> float:
        return self.x(self.tick / 100)


def scale_of(intervals: Sequence[Sequence[float]]) -> Scale:
    """A scale of round numbers that holds all ``intervals`` ([low, high] in fractions); 0 to 100 where there is none."""
    if not intervals:
        return Scale(0, 100, 50)
    least, most = 100 * min(i[0] for i in intervals), 100 * max(i[1] for i in intervals)
    step = next(nice for nice in _NICE if nice >= (most - least) / 10 or nice == _NICE[-1])
    low, high = max(0.0, math.floor(least / step) * step), min(100.0, math.ceil(most / step) * step)
    if high - low < step:
        low, high = max(0.0, high - step), min(100.0, low + step)
    middle = (low + high) / 2
    coarse = round(middle / (5 * step)) * 5 * step
    tick = coarse if low < coarse < high else round(middle / step) * step
    return Scale(round(low, 6), round(high, 6), round(tick if low < tick < high else middle, 6))


def strip(scale: Scale, value: float, interval: Sequence[float] | None, seeds: Sequence[float] = ()) -> Markup:
    """An accuracy (0..1) with its interval on the scale that all rows share; ``seeds`` are the values behind a mean."""
    low, high = (scale.x(end) for end in interval or (value, value))
    point, dots = scale.x(value), "".join(f'<circle class="dot" cx="{scale.x(v):.1f}" cy="10" r="3"/>' for v in seeds)
    middle = (
        f'<path class="pt" d="M{point:.1f} 5.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z"/>'
        if seeds
        else f'<circle class="pt" cx="{point:.1f}" cy="10" r="3"/>'
    )
    return Markup(
        f'<svg class="strip" viewBox="0 0 112 20" aria-hidden="true"><path class="axis" d="M3 10H109M{scale.tick_x:.1f} 7v6"/>'
        f'{dots}<path class="ci" d="M{low:.1f} 10H{high:.1f}M{low:.1f} 7v6M{high:.1f} 7v6"/>{middle}</svg>'
    )


def spark(values: Sequence[float]) -> Markup:
    """A line through ``values`` (losses), the largest at the top; nothing for fewer than two finite ones."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return Markup("")
    least, span = min(finite), max(finite) - min(finite) or 1.0
    across, down = 82 / (len(finite) - 1), 16 / span
    path = "L".join([f"{2 + across * i:.1f} {18 - down * (value - least):.1f}" for i, value in enumerate(finite)])
    words = _("training loss, from {first} to {last}").format(first=f"{finite[0]:.3g}", last=f"{finite[-1]:.3g}")
    return Markup(
        f'<svg class="spark" viewBox="0 0 88 20" role="img" aria-label="{escape(words)}"><path d="M{path}"/>'
        f'<circle cx="84.0" cy="{18 - down * (finite[-1] - least):.1f}" r="2"/></svg>'
    )


@cache
def icon(name: str) -> Markup:
    """The icon with that name in templates/_partials/sprite.html."""
    return Markup(f'<svg class="icon" aria-hidden="true"><use href="#i-{escape(name)}"/></svg>')


@dataclass(frozen=True)
class Bar:
    """One bar of a chart 300 wide and 59 high, with the middle of its column."""

    x: float
    y: float
    width: float
    height: float
    middle: float
    count: int
    name: str
    label: str  # the name, shortened to the column


def bars(names: Sequence[str], counts: Sequence[int]) -> list[Bar]:
    """Bars of images per class, the highest 32 units high; labels are cut where columns are narrow."""
    if not counts:
        return []
    column, most = 300 / len(counts), max(*counts, 1)
    room = max(1, int(column / 5))
    result = []
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        height = 32 * count / most
        width = column * 0.8
        label = name if len(name) <= room else name[: room - 1] + "…"
        result.append(
            Bar(i * column + column * 0.1, 46 - height, width, height, (i + 0.5) * column, count, name, label)
        )
    return result
