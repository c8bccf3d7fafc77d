"""SVG: elements, axes and the finished drawing. All drawings of the server are made of these.

Elements carry classes and no colours; the style sheet colours them, so that both themes work. Only ``text`` and labels
hold what people typed, and only they are escaped: classes and path data come from this package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

CHARACTER_WIDTH = 5.8  # of a character in a chart, roughly
Point = tuple[float, float]
Scale = Callable[[float], float]  # from a value to its place on the drawing


@dataclass(frozen=True)
class Drawing:
    """A finished SVG; a template prints it as it is."""

    width: float
    height: float
    label: str  # the text alternative
    parts: tuple[Markup, ...]
    css: str = "chart"

    def __html__(self) -> str:
        box = f"0 0 {n(self.width)} {n(self.height)}"
        return f'<svg class="{self.css}" viewBox="{box}" role="img" aria-label="{escape(self.label)}">{_join(self.parts)}</svg>'


@dataclass(frozen=True)
class ResponsiveDrawing:
    """One chart drawn twice, for wide and for narrow screens; the style sheet shows one of them."""

    wide: Drawing
    narrow: Drawing

    def __html__(self) -> str:
        return self.wide.__html__() + self.narrow.__html__()


def decoration(css: str, box: str, parts: Iterable[Markup]) -> Markup:
    """A small SVG next to a text with the same content, so it has no text alternative."""
    return Markup(f'<svg class="{css}" viewBox="{box}" aria-hidden="true">{_join(parts)}</svg>')


# Elements ------------------------------------------------------------------------------------------------------------


def n(value: float | str) -> str:
    """A coordinate with at most one decimal. Text is taken as formatted already."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


def _join(parts: Iterable[str]) -> Markup:
    return Markup("".join(parts))


def text(x: float | str, y: float | str, content: str, css: str = "", *, size: int | None = None) -> Markup:
    """A text; ``size`` is that of its font where the style sheet's does not fit."""
    font = "" if size is None else f' font-size="{size}"'
    return Markup(f'<text class="{css}" x="{n(x)}" y="{n(y)}"{font}>{escape(content)}</text>')


def path(d: str, css: str = "") -> Markup:
    return Markup(f'<path{_class(css)} d="{d}"/>')


def horizontal(y: float, start: float, end: float, css: str) -> Markup:
    return path(f"M{n(start)} {n(y)}H{n(end)}", css)


def vertical(x: float, start: float, end: float, css: str) -> Markup:
    return path(f"M{n(x)} {n(start)}V{n(end)}", css)


def rect(x: float | str, y: float | str, width: float | str, height: float | str, css: str) -> Markup:
    return Markup(f'<rect class="{css}" x="{n(x)}" y="{n(y)}" width="{n(width)}" height="{n(height)}"/>')


def circle(x: float | str, y: float | str, radius: float | str, css: str = "", *, title: str = "") -> Markup:
    return _with_title("circle", f'{_class(css)} cx="{n(x)}" cy="{n(y)}" r="{n(radius)}"', title)


def polyline(points: Sequence[Point], css: str, *, title: str = "") -> Markup:
    return _with_title("polyline", f' class="ln {css}" points="{_places(points)}"', title)


def _with_title(name: str, attributes: str, title: str) -> Markup:
    """An element that shows ``title``, unless it is empty, when the pointer rests on it."""
    if not title:
        return Markup(f"<{name}{attributes}/>")
    return Markup(f"<{name}{attributes}><title>{escape(title)}</title></{name}>")


def polygon(points: Sequence[Point], css: str) -> Markup:
    return Markup(f'<polygon class="{css}" points="{_places(points)}"/>')


def _places(points: Sequence[Point]) -> str:
    return " ".join(f"{n(x)},{n(y)}" for x, y in points)


def group(css: str, parts: Iterable[Markup]) -> Markup:
    return Markup(f'<g class="{css}">{_join(parts)}</g>')


def diamond(x: float, y: float, radius: float, css: str = "pt") -> Markup:
    r = n(radius)
    return path(f"M{n(x)} {n(y - radius)}l{r} {r}l{n(-radius)} {r}l{n(-radius)} {n(-radius)}z", css)


def whisker(low: float, high: float, y: float, cap: float = 5) -> Markup:
    """An interval as a line with a cap at each end."""
    height = n(2 * cap)
    caps = f"M{n(low)} {n(y - cap)}v{height}M{n(high)} {n(y - cap)}v{height}"
    return path(f"M{n(low)} {n(y)}H{n(high)}{caps}", "ci")


# Axes ----------------------------------------------------------------------------------------------------------------


def scale(domain: tuple[float, float], place: tuple[float, float]) -> Scale:
    """The linear map that takes the ends of ``domain`` to the ends of ``place``."""
    (low, high), (start, end) = domain, place
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


def nice_step(span: float, count: int = 6) -> float:
    """A step of 1, 2, 2.5 or 5 times a power of ten that divides ``span`` into at most ``count`` parts."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    return next(step * power for step in (1, 2, 2.5, 5, 10, 20) if span / (step * power) <= count)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``count`` + 1."""
    step = nice_step(high - low, count)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]
