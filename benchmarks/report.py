"""Results as a page and a picture: docs/lab/benchmarks.md and docs/lab/benchmarks.svg are written from here only."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

PICTURE = "benchmarks.svg"


@dataclass
class Result:
    """What one benchmark found, in words, as a table, and as it was measured."""

    name: str
    title: str
    figure: str  # the result in a few words
    repeats: str  # what n is
    sentence: str = ""  # how it was measured, where the title does not say
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    ratio: float | None = None  # how many times as fast as the notebook's loop
    text: str = ""  # lines printed by a benchmark of its own
    raw: dict[str, Any] = field(default_factory=dict)
    measured_at: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    other_work: float = 0.0  # part of all cores that was busy just before it began


def read_results(path: Path) -> dict[str, Result]:
    """The results kept in ``path``, by name; none where there is no such file."""
    if not path.exists():
        return {}
    return {name: Result(**values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()}


def keep_results(path: Path, results: Mapping[str, Result]) -> None:
    """Write the results to ``path``."""
    text = json.dumps({name: asdict(result) for name, result in results.items()}, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


# Numbers in words ----------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits, with commas: 0.512, 12.3, 1,234."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def spread(values: Sequence[float]) -> str:
    """The median with both ends: "0.512 (0.498 to 0.530)"."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def percent(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f} %"


def times(ratio: float) -> str:
    return f"{ratio:.1f} times as fast"


def accuracies(values: Sequence[float]) -> str:
    return ", ".join(f"{100 * value:.2f}" for value in values) + " %"


def count(number_of: int, noun: str) -> str:
    """A number of things: "1 epoch", "10 epochs"."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


# The page ------------------------------------------------------------------------------------------------------------

_INTRODUCTION = """\
# Benchmarks

`make bench` writes this page and its picture. Every ratio compares two sides that were timed on the same machine, taking
turns, each time in a fresh process.

- **Notebook loop** is `benchmarks/notebook_loop.py`: nets and loops as in a teaching notebook, with torchvision's data
  sets, PIL transforms for each image and a `DataLoader`, in float32, with PyTorch's default number of threads. CIFAR-10
  is decoded beforehand and kept in memory.
- **Runoff** is its engine with the precision and the number of threads that Runoff chooses, without server and run
  folder unless a section says otherwise.

Both train on all images of an epoch and test on all test images, including the short last batches; if one side did less
work, the comparison fails. The time to open the data is not counted on either side. Times are medians, with the shortest
and the longest in parentheses. Seconds are valid for the machine named; ratios are more general.
"""


def page(results: Iterable[Result]) -> str:
    """The Markdown of docs/lab/benchmarks.md."""
    results = [*results]
    parts = [_INTRODUCTION, f"![How many times as fast as the notebook's loop]({PICTURE})\n", _summary(results)]
    return "\n".join(parts + [_section(result) for result in results])


def _summary(results: Sequence[Result]) -> str:
    rows = [[result.title, f"**{result.figure}**", result.repeats] for result in results if not result.text]
    return _table(["what", "result", "n"], rows)


def _section(result: Result) -> str:
    lines = [f"## {result.title}"]
    if result.figure:
        lines.append(f"**{result.figure[0].upper()}{result.figure[1:]}**; n: {result.repeats}.")
    if result.sentence:
        lines.append(result.sentence)
    if result.rows:
        lines += ["", _table(result.head, result.rows)]
    if result.text:
        lines += ["", f"```\n{result.text.strip()}\n```\n"]
    return "\n".join([*lines, f"<sub>{_where(result)}</sub>\n"])


def _where(result: Result) -> str:
    parts = [value if name in ("machine", "system") else f"{name} {value}" for name, value in result.machine.items()]
    return f"{', '.join(parts)}; {result.measured_at[:10]}; other work before it: {percent(result.other_work, 0)} of the cores"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[*head], ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


# The picture ---------------------------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT, _LINE, _TOP = 780, 340, 60, 30, 44
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1d2433}.title{font-weight:600}"
    ".bar{fill:#3b66c4}.unit{stroke:#8a93a6;stroke-dasharray:3 3}"
    "@media(prefers-color-scheme:dark){text{fill:#e6e9f0}.bar{fill:#7d9ff0}}"
)


def picture(results: Iterable[Result]) -> str:
    """A bar for each ratio, as SVG; the dashed line is the notebook's loop, at 1."""
    bars = [(result.title, result.ratio) for result in results if result.ratio is not None]
    scale = (_WIDTH - _LEFT - _RIGHT) / max([ratio for _title, ratio in bars], default=1.0)
    height = _TOP + _LINE * len(bars) + 12
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>How many times as fast as the notebook's loop</title><style>{_STYLE}</style>",
        '<text x="12" y="24" class="title">Times as fast as the notebook&#8217;s loop</text>',
    ]
    for row, (title, ratio) in enumerate(bars):
        y = _TOP + _LINE * row
        lines.append(
            f'<text x="{_LEFT - 10}" y="{y + 16}" text-anchor="end">{escape(title)}</text>'
            f'<rect class="bar" x="{_LEFT}" y="{y + 2}" width="{ratio * scale:.1f}" height="20" rx="2"/>'
            f'<text x="{_LEFT + ratio * scale + 8:.1f}" y="{y + 16}">{ratio:.1f}</text>'
        )
    one = _LEFT + scale
    lines.append(f'<line class="unit" x1="{one:.1f}" x2="{one:.1f}" y1="{_TOP - 6}" y2="{height - 8}"/>')
    return "\n".join([*lines, "</svg>\n"])


def write(folder: Path, results: Mapping[str, Result]) -> None:
    """Write the page and its picture into ``folder``."""
    (folder / PICTURE).write_text(picture(results.values()), encoding="utf-8")
    (folder / "benchmarks.md").write_text(page(results.values()), encoding="utf-8")
