"""Reduce the points of a long curve so that it looks the same when drawn."""

from __future__ import annotations

from collections.abc import Sequence

MOST_POINTS = 500  # per line


def thin(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Choose at most ``most`` indices: the minimum and maximum of each section of equal length, and both ends."""
    if len(values) <= most:
        return list(range(len(values)))
    stretches, inner = max((most - 2) // 2, 1), len(values) - 2
    kept = [0]
    for number in range(stretches):
        part = range(1 + number * inner // stretches, 1 + (number + 1) * inner // stretches)
        if part:
            kept += sorted({min(part, key=values.__getitem__), max(part, key=values.__getitem__)})
    return [*kept, len(values) - 1][:most]
