"""What a run looks like on a page: the colour, marker and dash that go with its number, in SVG and for plotly.js.

There are eight of each. Later runs combine them differently, so that 64 runs differ in colour or marker.
"""

from __future__ import annotations

from functools import cache

from markupsafe import Markup

from app.draw import svg

MARKS = 8
_LEGEND_BOX = "-6 -6 12 12"
PLOTLY_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "circle-open", "x", "line-ew-open", "line-ns-open")
PLOTLY_DASHES = ("solid", "solid", "6px,3px", "6px,3px", "2px,3px", "2px,3px", "8px,3px,2px,3px", "8px,3px,2px,3px")
LINE_CLASSES = ("", "", "dash", "dash", "dot", "dot", "dashdot", "dashdot")


def colour_of(index: int) -> int:
    """The number of the colour of run ``index`` (from 0) on a page: 1 to 8, as in the token ``run-1``."""
    return index % MARKS + 1


def marker_of(index: int) -> int:
    """The number of its marker, 0 to 7. It shifts by one each time the colours start again."""
    return (index + index // MARKS) % MARKS


def dash_of(index: int) -> int:
    """The number of its dash, 0 to 7. Neighbouring numbers share a dash."""
    return (index + 2 * (index // MARKS)) % MARKS


def marker(index: int, x: float, y: float, *, css: str = "pt", radius: float = 4.5) -> Markup:
    """The marker of run ``index`` at a point of a chart."""
    r, n = radius, svg.n
    match marker_of(index):
        case 1:
            return svg.rect(x - 0.88 * r, y - 0.88 * r, 1.76 * r, 1.76 * r, css)
        case 2:
            return svg.path(f"M{n(x)} {n(y - 1.15 * r)}l{n(1.1 * r)} {n(2 * r)}h{n(-2.2 * r)}z", css)
        case 3:
            return svg.diamond(x, y, 1.3 * r, css)
        case 5:
            cross = f"M{n(x - r)} {n(y - r)}l{n(2 * r)} {n(2 * r)}m0 {n(-2 * r)}l{n(-2 * r)} {n(2 * r)}"
            return svg.path(cross, "ci slim")
        case 6:
            return svg.path(f"M{n(x - r)} {n(y)}h{n(2 * r)}", "ci")
        case 7:
            return svg.path(f"M{n(x)} {n(y - r)}v{n(2 * r)}", "ci")
    return svg.circle(x, y, r, css)


def legend_marker(number: int, x: float = 0, y: float = 0) -> Markup:
    """Marker ``number`` (0 to 7) as legends and tables show it: heavier than in charts, around a point of a 12 by 12 box."""
    match number:
        case 0:
            return Markup(f'<circle class="pt" cx="{x}" cy="{y}" r="5"/>')
        case 1:
            return Markup(f'<rect class="pt" x="{x - 4.4}" y="{y - 4.4}" width="8.8" height="8.8"/>')
        case 2:
            return svg.path(f"M{x} {y - 5.5}l5.2 9.5h-10.5z", "pt")
        case 3:
            return svg.path(f"M{x} {y - 6}l6 6l-6 6l-6 -6z", "pt")
        case 4:
            stroke = 'fill="none" stroke="currentColor" stroke-width="2.8"'
            return Markup(f'<circle cx="{x}" cy="{y}" r="3.8" {stroke}/>')
        case 5:
            stroke = 'fill="none" stroke="currentColor" stroke-width="2.5"'
            return Markup(f'<path d="M{x - 5} {y - 5}l10 10m0 -10l-10 10" {stroke}/>')
        case 6:
            return Markup(f'<rect class="pt" x="{x - 5.5}" y="{y - 2}" width="11" height="4"/>')
    return Markup(f'<rect class="pt" x="{x - 2}" y="{y - 5.5}" width="4" height="11"/>')


@cache
def mark(index: int) -> Markup:
    """The coloured marker of run ``index`` beside its name in a text, a legend or a table."""
    return svg.decoration(f"mark r{colour_of(index)}", _LEGEND_BOX, [legend_marker(marker_of(index))])


def grey_mark(number: int) -> Markup:
    """Marker ``number`` in grey, for entries of a legend other than runs."""
    return svg.decoration("mark r5", _LEGEND_BOX, [legend_marker(number)])
