"""Geometry of the small drawings in tables and cards, made on the server: strips, sparklines, bars. Colours are CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Strip:
    """One accuracy on the shared scale: interval, point, and the single seeds where it is a mean."""

    point: float
    low: float
    high: float
    tick: float
    seeds: list[float]


def strip(scale: Scale, value: float, interval: Sequence[float] | None, seeds: Sequence[float] = ()) -> Strip:
    """Positions for the strip of ``value`` (0..1) with its ``interval``; ``seeds`` are the values behind a mean."""
    low, high = interval or (value, value)
    return Strip(scale.x(value), scale.x(low), scale.x(high), scale.tick_x, [scale.x(seed) for seed in seeds])


@dataclass(frozen=True)
class Spark:
    """A sparkline of 88 x 20: its path and its last point."""

    path: str
    last_x: float
    last_y: float
    first: float
    last: float


def spark(values: Sequence[float]) -> Spark | None:
    """The line through ``values`` (losses), the largest at the top; None for fewer than two finite ones."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return None
    least, span = min(finite), max(finite) - min(finite) or 1.0
    spots = [(2 + 82 * i / (len(finite) - 1), 18 - 16 * (v - least) / span) for i, v in enumerate(finite)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    return Spark(path, *spots[-1], finite[0], finite[-1])


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
