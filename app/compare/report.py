"""What a comparison is taken away as: CSV files, and a report in one HTML file that needs nothing else to be read.

Loads what the report shows and renders it; verdicts and their numbers are ``app.compare.comparison``'s.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from sqlmodel import Session

from app.compare import curves
from app.compare import view as compare_parts
from app.compare import walls as compare_images
from app.compare.load import LoadedComparison
from app.compare.shapes import Comparison
from app.compare.view import ConfigRow, Focus, PairTable, ShownRun
from app.compare.walls import ClassTable, SharedTile
from app.draw.figures import axis_title
from app.draw.printed import figure_drawing
from app.draw.svg import Drawing
from app.errors import NotFound
from app.schemas import EpochOut
from app.state import Runoff
from app.store import predictions, queries
from app.store.epochs import epochs_of_runs
from app.store.images import image_png
from app.store.predictions import Predictions, PredictionsError
from app.store.tables import Run
from app.web import templating
from app.words import between, compact, level_text, number, p_text, percent, plain_points, points, points_range
from trainer.i18n import _, ngettext
from trainer.run_folder import RunFolder, now

_MOST_PICTURES = 24  # of each kind
_SHEETS = (*templating.STYLE_SHEETS, "report.css")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


# CSV -----------------------------------------------------------------------------------------------------------------


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A header line and the rows. A text that a spreadsheet would take for a formula gets an apostrophe in front."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in row])
    return text.getvalue().encode()


_PAIR_COUNTS = (
    "num_images", "a_correct", "b_correct", "both_correct", "only_a_correct", "only_b_correct", "both_wrong",
    "same_wrong_answer",
)  # fmt: skip


def pairs_csv(comparison: Comparison) -> bytes:
    """One line a pair; differences and intervals are fractions, a minus b."""
    columns = [
        "a", "b", "a_name", "b_name", *_PAIR_COUNTS, "difference", "low", "high", "level", "p_value", "p_value_adjusted",
        "agreement", "kappa", "equivalence_p_value", "margin", "verdict", "heading",
    ]  # fmt: skip
    rows = [
        [
            pair.a, pair.b, pair.a_name, pair.b_name, *(getattr(pair, name) for name in _PAIR_COUNTS), pair.difference,
            *(pair.interval or (None, None)), comparison.level if pair.interval else None, pair.p_value,
            pair.p_value_adjusted, pair.agreement, pair.kappa and pair.kappa.value, pair.equivalence_p_value,
            comparison.margin, pair.verdict, pair.heading,
        ]
        for pair in comparison.pairs
    ]  # fmt: skip
    return _csv(columns, rows)


def epochs_csv(runs: Sequence[Run], epochs: Sequence[Sequence[EpochOut]]) -> bytes:
    """The epochs of all runs, one line each, with the run's id and name in front."""
    names = list(EpochOut.model_fields)
    rows = [
        [run.id, run.name, *(getattr(epoch, name) for name in names)]
        for run, own in zip(runs, epochs, strict=True)
        for epoch in own
    ]
    return _csv(["run", "name", *names], rows)


# The report ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wall:
    """Some of the test images on which the pair in focus differs."""

    title: str
    tiles: list[SharedTile]
    total: int


@dataclass(frozen=True)
class Figures:
    """The curves, and what they are: words, and the number and the name of each."""

    accuracy: Drawing
    loss: Drawing
    words: str
    legend: list[tuple[int, str]]


@dataclass(frozen=True)
class Environment:
    """Where and with what one run was trained."""

    device: str
    threads: str
    precision: str
    versions: str


@dataclass(frozen=True)
class Report:
    """Variables of report.html."""

    created_at: str
    runoff: str  # its version
    style: str
    style_hash: str  # as a Content-Security-Policy names it
    loaded: LoadedComparison
    shown: list[ShownRun]
    base: str | None
    focus: Focus
    pairs: PairTable
    at: str
    figures: Figures
    classes: ClassTable | None
    walls: list[Wall]
    pictures: dict[int, str]  # index of a test image -> data: address; empty where the images are not here
    config: list[ConfigRow]
    environments: list[Environment]
    method: list[str]

    @property
    def comparison(self) -> Comparison:
        return self.loaded.comparison

    @property
    def by_id(self) -> dict[str, ShownRun]:
        return {one.run.id: one for one in self.shown}

    @property
    def policy(self) -> str:
        """What the file may load: its own style and pictures, nothing else."""
        return f"default-src 'none'; img-src data:; style-src '{self.style_hash}'"

    @property
    def different(self) -> list[ConfigRow]:
        return [row for row in self.config if row.is_different]

    @property
    def same(self) -> list[ConfigRow]:
        return [row for row in self.config if not row.is_different]

    @property
    def long_names(self) -> bool:
        """Whether the classes have names that need wide tiles."""
        return any(len(name) > 3 for name in self.focus.a.run.class_names)

    def class_name(self, number: int) -> str:
        names = self.focus.a.run.class_names
        return names[number] if number < len(names) else str(number)

    @property
    def pair_facts(self) -> list[tuple[str, str]]:
        """The numbers of the pair in focus, with their names."""
        pair, comparison = self.focus.pair, self.comparison
        assert pair.interval is not None
        assert pair.p_value is not None
        test = p_text(pair.p_value)
        if self.focus.is_corrected and pair.p_value_adjusted is not None:
            test += f", {_('corrected')} {p_text(pair.p_value_adjusted)}"
        agreement = _("{percent} % of {n} images").format(percent=percent(pair.agreement), n=number(pair.num_images))
        facts = [
            (_("Difference, points"), f"{points(pair.difference)}, {points_range(pair.interval)}"),
            (_("Level of the interval"), _("{percent} %").format(percent=compact(100 * comparison.level, 4))),
            (_("Exact McNemar test"), test),
            (_("Same answer"), agreement),
        ]
        if pair.kappa:
            low, high = (f"{end:.4f}" for end in pair.kappa.interval)
            facts.append((_("Cohen's kappa"), f"{pair.kappa.value:.4f}, {between(low, high)}"))
        return facts

    @property
    def pairs_title(self) -> str:
        if self.base:
            return _("Differences against {name}").format(name=self.by_id[self.base].name)
        return _("All pairs")

    def is_optimistic(self, one: ShownRun) -> bool:
        """Whether the run was chosen by the very images that it is tested on."""
        return self.comparison.best_of is not None and self.comparison.best_of.run == one.run.id

    def html(self) -> str:
        """The file."""
        template = templating.environment().get_template("report.html")
        return template.render(page=self, language=templating.language())


def make_report(
    state: Runoff, session: Session, loaded: LoadedComparison, *, base: str | None, at: str, pair: str, view: curves.View,
    over_seeds: bool,
) -> Report:  # fmt: skip
    """All that the report shows; ``pair`` is the one in focus, "ID.ID". The comparison needs two runs."""
    shown = compare_parts.shown_runs(loaded)
    focus = compare_parts.focus(loaded.comparison, shown, pair)
    classes, walls, pictures = _evidence(state, focus)
    style = "\n".join((templating.STATIC / name).read_text(encoding="utf-8") for name in _SHEETS)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return Report(
        created_at=now(), runoff=version("runoff"), style=style, style_hash=f"sha256-{digest}", loaded=loaded, shown=shown,
        base=base, focus=focus, at=at, figures=_figures(session, loaded, view, over_seeds),
        pairs=compare_parts.pair_table(loaded.comparison, {one.run.id: one.place for one in shown}),
        classes=classes, walls=walls, pictures=pictures,
        config=compare_parts.config_rows(shown, loaded.comparison, base),
        environments=[_environment(state, one.run) for one in shown], method=_method(loaded.comparison, focus),
    )  # fmt: skip


def _figures(session: Session, loaded: LoadedComparison, view: curves.View, over_seeds: bool) -> Figures:
    repeats = queries.runs_of_groups(session, [run.group for run in loaded.runs]) if over_seeds else []
    epochs = {run.id: own for run, own in zip(loaded.runs, loaded.epochs, strict=True)}
    epochs |= epochs_of_runs(session, [run for run in repeats if run.id not in epochs])
    singles, groups = compare_parts.curves_of(loaded.runs, epochs, repeats)
    names = [(one.index, one.name) for one in singles] + [(one.index, one.name) for one in groups]
    return Figures(
        accuracy=figure_drawing(curves.figure("accuracy", singles, groups, view), _("Test accuracy of the runs")),
        loss=figure_drawing(curves.figure("loss", singles, groups, view), _("Loss of the runs")),
        words=_curves_words(view, over_seeds), legend=sorted(names),
    )  # fmt: skip


def _curves_words(view: curves.View, over_seeds: bool) -> str:
    parts = [_("by {axis}").format(axis=axis_title(view.axis))]
    if over_seeds:
        parts.append(_("where a recipe has finished repeats, their mean with its 95 % interval (t), single runs thin"))
    if view.smooth:
        parts.append(_("smoothed (exponential, {weight}), the measured values faint").format(weight=f"{view.smooth:g}"))
    return ", ".join(parts)


def _evidence(state: Runoff, focus: Focus) -> tuple[ClassTable | None, list[Wall], dict[int, str]]:
    """Classes, images and their pictures; nothing where the two runs can't be compared."""
    if focus.pair.interval is None:
        return None, [], {}
    try:
        mine, other = (
            predictions.load(RunFolder(state.settings.runs / one.run.id), one.epoch or 1) for one in (focus.a, focus.b)
        )
    except PredictionsError:
        return None, [], {}
    size = compare_images.num_classes(focus.a.run.class_names, mine, other)
    titles = [
        ("a", _("Only {name} right").format(name=focus.a.name)), ("b", _("Only {name} right").format(name=focus.b.name)),
        ("wrong", _("Both wrong")),
    ]  # fmt: skip
    walls = [_wall(side, title, mine, other, focus) for side, title in titles]
    indices = {tile.index for wall in walls for tile in wall.tiles}
    return (
        compare_images.class_table(mine, other, focus.places, size), walls, _pictures(state, focus.a.run, indices),
    )  # fmt: skip


def _wall(side: str, title: str, mine: Predictions, other: Predictions, focus: Focus) -> Wall:
    found = compare_images.separating(mine, other, side, None, None)
    both = [(focus.a.place, mine), (focus.b.place, other)]
    return Wall(title, compare_images.shared_tiles(found[:_MOST_PICTURES].tolist(), both), len(found))


def _pictures(state: Runoff, run: Run, indices: Iterable[int]) -> dict[int, str]:
    home, fingerprint = state.settings.home, run.test_fingerprint or ""
    try:
        found = {index: image_png(home, run.dataset, "test", fingerprint, index) for index in indices}
    except NotFound:
        return {}
    return {index: f"data:image/png;base64,{base64.b64encode(png).decode()}" for index, png in found.items()}


def _environment(state: Runoff, run: Run) -> Environment:
    told = RunFolder(state.settings.runs / run.id).read_environment() or {}
    names = (("torch", "PyTorch"), ("python", "Python"), ("numpy", "NumPy"))
    machine = told.get("machine") or told.get("device_name", "")
    return Environment(
        device=", ".join(str(part) for part in (told.get("device") or run.device, machine) if part),
        threads=str(told.get("num_threads", "")), precision=str(told.get("precision") or run.precision or ""),
        versions=", ".join(f"{title} {told[key]}" for key, title in names if key in told),
    )  # fmt: skip


def _method(comparison: Comparison, focus: Focus) -> list[str]:
    """How the numbers were found, a sentence or two each."""
    m, level = comparison.num_tested, level_text(comparison.level)
    return [
        _(
            "Accuracies are counted from the stored answers for every test image. An interval of one accuracy is Wilson's "
            "score interval at 95 %."
        ),
        ngettext(
            "Two nets: exact McNemar test over the images on which exactly one of them is right, Tango's score interval of "
            "the paired difference at {level}; one pair, nothing to correct for.",
            "Two nets: exact McNemar test over the images on which exactly one of them is right, p adjusted by Holm over "
            "{m} pairs; Tango's score interval of the paired difference at {level} each.",
            m,
        ).format(m=m, level=level),
        _(
            "The verdict is the first that fits: other test images, not comparable; all answers equal, or the interval within "
            "±{margin} points, too small to matter; adjusted p at most 0.05 and an interval without zero, better; else "
            "inconclusive."
        ).format(margin=plain_points(comparison.margin)),
        _(
            "Two recipes: means over seeds by the paired t interval where the seeds are the same, else Welch's; the wider of "
            "that and one that adds the variance over the shared test images."
        ),
        _(
            "Calibration error: mean distance of confidence and accuracy over bins of equally many images, without its bias. "
            "Agreement beyond chance: Cohen's kappa. Classes: intervals at a level at which all of them hold together in 95 %."
        ),
    ]
