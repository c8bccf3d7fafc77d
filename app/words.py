"""Numbers, times and values as text: the formats of pages, verdicts, charts and the command line.

Accuracies and differences of accuracies come in as fractions (0 to 1) unless a docstring says otherwise. The minus sign
is the typographic one. Filters of the templates have the names of these functions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from trainer.i18n import N_, _

MINUS = "−"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
STATUS_WORDS = {
    "queued": N_("Queued"),
    "running": N_("Running"),
    "finished": N_("Finished"),
    "failed": N_("Failed"),
    "cancelled": N_("Cancelled"),
    "damaged": N_("Damaged"),
}


def statuses_in_words(statuses: Iterable[str]) -> str:
    """How many runs have finished, and what the others do: ``7 of 12 finished, 1 running, 4 queued``."""
    counts = Counter(statuses)
    words = {"running": _("running"), "queued": _("queued"), "failed": _("failed"), "cancelled": _("cancelled")}
    finished = _("{n} of {total} finished").format(n=number(counts["finished"]), total=number(counts.total()))
    return ", ".join([finished, *(f"{number(counts[status])} {words[status]}" for status in words if counts[status])])


# Numbers -------------------------------------------------------------------------------------------------------------


def number(value: float | None, digits: int = 0) -> str:
    """``6422`` -> ``6,422``; ``digits`` after the point. Empty for None."""
    return "" if value is None else f"{value:,.{digits}f}".replace("-", MINUS)


def compact(value: float | None, digits: int = 3) -> str:
    """A number of any size with ``digits`` significant digits: ``0.0213``, ``2.31``, ``1.2e-07``."""
    return "" if value is None else f"{value:.{digits}g}"


def filesize(value: float | None) -> str:
    """Bytes in decimal units: ``170.5 MB``."""
    if value is None:
        return ""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def flops(value: float | None) -> str:
    """Floating-point operations with three significant digits: ``2.31 TFLOP``."""
    if value is None:
        return ""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 999.5:
            return f"{value:.3g} {unit}FLOP"
        value /= 1000
    return f"{value:,.0f} EFLOP"


def flops_rate(gigaflops: float | None) -> str:
    """Billions of floating-point operations a second: ``2.31 TFLOP/s``; empty for None and 0."""
    return f"{flops(gigaflops * 1e9)}/s" if gigaflops else ""


def value_words(value: Any) -> str:
    """A value of a configuration: ``yes`` and ``no`` for booleans, floats without trailing zeros."""
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return f"{value:g}" if isinstance(value, float) else str(value)


def between(low: str, high: str) -> str:
    """An interval: ``94.04 to 94.93``."""
    return _("{low} to {high}").format(low=low, high=high)


# Accuracies ----------------------------------------------------------------------------------------------------------


def percent(fraction: float | None, digits: int = 2) -> str:
    """A measured share in percent without the sign: ``0.9781`` -> ``97.81``.

    Rounds to ``digits`` decimals, but never an imperfect share up to 100. Tables and cards use it. Sentences of verdicts
    use ``rounded_percent``.
    """
    if fraction is None:
        return ""
    text = f"{100 * fraction:.{digits}f}"
    if fraction < 1 and text == f"{100:.{digits}f}":
        text = f"{100 - 10**-digits:.{digits}f}"
    return text


def rounded_percent(fraction: float) -> str:
    """An accuracy in a sentence, with the sign: ``0.9781`` -> ``97.81 %``. Rounds to two decimals, also up to 100."""
    return f"{fraction * 100:.2f} %"


def short_percent(fraction: float) -> str:
    """A share that a person chose, in percent without trailing zeros: ``0.9`` -> ``90``, ``0.978`` -> ``97.8``."""
    return f"{100 * fraction:.6g}"


def accuracy_with_interval(accuracy: float, interval: Sequence[float]) -> str:
    """An accuracy and its interval in percent: ``94.50 (94.04 to 94.93)``."""
    low, high = (f"{100 * end:.2f}" for end in interval)
    return f"{100 * accuracy:.2f} ({between(low, high)})"


# Differences of accuracies -------------------------------------------------------------------------------------------


def signed(value: float, digits: int = 2) -> str:
    """A difference that is given in percentage points, with its sign: ``+4.83``, ``−0.01``, ``0.00``."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else ("+" if value > 0 else MINUS) + text


def points(difference: float | None, digits: int = 2) -> str:
    """A difference in percentage points with its sign: ``0.0483`` -> ``+4.83``. Rounds to ``digits`` decimals.

    Tables use it. Sentences of verdicts, which say the direction in words, use ``short_points``.
    """
    return "" if difference is None else signed(100 * difference, digits)


def percent_range(interval: tuple[float, float] | None, digits: int = 2) -> str:
    """An interval of accuracies in per cent: ``94.04 to 94.93``; empty for None."""
    return between(percent(interval[0], digits), percent(interval[1], digits)) if interval else ""


def points_range(interval: tuple[float, float] | None, digits: int = 2) -> str:
    """An interval of differences in percentage points: ``+0.12 to +0.40``; empty for None."""
    return between(points(interval[0], digits), points(interval[1], digits)) if interval else ""


def short_points(difference: float) -> str:
    """The size of a difference in percentage points: ``0.0483`` -> ``4.8``.

    Rounds to one decimal, or to two where one would show 0.0 for a difference that is there.
    """
    value = abs(difference) * 100
    return f"{value:.1f}" if value >= 0.05 or value == 0 else f"{value:.2f}"


def points_at_most(difference: float) -> str:
    """An upper limit in percentage points: ``0.004301`` -> ``0.44``. Rounds up, so that it is never shown too small."""
    return f"{math.ceil(round(abs(difference) * 10_000, 6)) / 100:.2f}"


def plain_points(difference: float) -> str:
    """A margin in percentage points as it was typed: ``0.5``, ``0.25``, ``1``."""
    return f"{difference * 100:.10g}"


def p_text(p: float, threshold: float = 0.05) -> str:
    """A p-value: ``p = 0.052``, ``p = 1.4 × 10⁻⁸⁶``, ``p < 10⁻³⁰⁰``. Never rounds to the other side of ``threshold``."""
    if p < 1e-300:
        return "p < 10⁻³⁰⁰"
    if p >= 0.001:
        digits = next((n for n in (2, 3, 4, 5) if (float(f"{p:.{n}g}") <= threshold) == (p <= threshold)), 6)
        return f"p = {p:.{digits}g}" if p < 0.995 else "p = 1.0"
    mantissa, power = f"{p:.1e}".split("e")
    return f"p = {mantissa} × 10{str(int(power)).translate(_SUPERSCRIPTS)}"


def p_number(p: float | None) -> str:
    """A p-value below a head that says p: ``0.012``, ``p < 10⁻⁶``; empty for None."""
    return "" if p is None else p_text(p).removeprefix("p = ")


def level_text(level: float) -> str:
    """The level of an interval, with as many digits as keep it below 100 %: ``95 %``, ``98.33 %``, ``99.9959 %``."""
    return f"{level * 100:.{max(4, math.ceil(-math.log10(1 - level)) + 1)}g} %"


# Axes of charts ------------------------------------------------------------------------------------------------------


def axis_number(value: float) -> str:
    """A number on an axis: no trailing zeros, commas between thousands."""
    return f"{round(value):,}" if abs(value) >= 1000 else f"{value:.6g}".replace("-", MINUS)


def axis_number_with_prefix(value: float) -> str:
    """A number on an axis, from 10,000 on with a prefix of the SI: ``10k``, ``1.5T``."""
    for prefix, least, size in (("T", 1e12, 1e12), ("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e4, 1e3)):
        if abs(value) >= least:
            return f"{value / size:.4g}{prefix}"
    return axis_number(value)


# Times ---------------------------------------------------------------------------------------------------------------


def seconds(value: float | None) -> str:
    """A duration: ``46.1 s``, ``3 min 55 s``, ``1 h 02 min``."""
    if value is None:
        return ""
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    whole = round(value / 60)
    return f"{whole // 60:,} h {whole % 60:02d} min"


def whole_seconds(value: float | None) -> str:
    """An estimated duration, rounded up to whole seconds: ``27 s``, ``3 min 55 s``."""
    return "" if value is None else f"{math.ceil(value)} s" if value <= 59 else seconds(value)


def moment(value: str | None, relative: bool = False) -> Markup:
    """A ``<time>`` element of an ISO 8601 UTC time. The browser shows it in its own time zone (static/live.js)."""
    if not value:
        return Markup("")
    text = value[:16].replace("T", " ") + " UTC"
    kind = "relative" if relative else "absolute"
    return Markup('<time datetime="{}" data-time="{}">{}</time>').format(value, kind, text)


def seconds_since(value: str | None) -> float:
    """How long ago an ISO 8601 UTC time was; 0 where there is none."""
    return (datetime.now(UTC) - datetime.fromisoformat(value)).total_seconds() if value else 0.0


def remaining(seconds_left: float | None, estimated_at: str | None) -> float | None:
    """What is left now of an estimate that was made at ``estimated_at``, never below 0; None where there is none."""
    return None if seconds_left is None else max(0.0, seconds_left - max(0.0, seconds_since(estimated_at)))
