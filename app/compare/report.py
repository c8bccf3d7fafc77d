"""A comparison as a report: one HTML file that needs nothing else to be read."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version

from sqlmodel import Session

from app.compare import curves
from app.compare.load import LoadedComparison
from app.compare.pair_images import ClassTable, SharedTile, class_table, pair_images
from app.compare.shapes import Comparison
from app.compare.view import (
    ConfigRow,
    Focus,
    PairTable,
    ShownRun,
    config_rows,
    pair_in_focus,
    pair_table,
    shown_runs,
)
from app.compare.walls import NamesClasses
from app.draw.figures import axis_title
from app.draw.printed import figure_drawing
from app.draw.svg import Drawing
from app.errors import NotFound
from app.state import Runoff
from app.store import queries
from app.store.epochs import epochs_of_runs
from app.store.images import image_png
from app.store.tables import Run
from app.web import templating
from app.words import between, compact, level_text, number, p_text, percent, plain_points, points, points_range
from trainer.i18n import _, ngettext
from trainer.run_folder import RunFolder, now

_MOST_PICTURES = 24  # of each kind
Pictures = dict[int, str]  # index of a test image -> data: address
_SHEETS = (*templating.STYLE_SHEETS, "report.css")


@dataclass(frozen=True)
class PairWall:
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
class Report(NamesClasses):
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
    class_table: ClassTable | None
    walls: list[PairWall]
    pictures: Pictures  # empty where the images are not here
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
    def classes(self) -> list[str]:  # type: ignore[override]
        """The names of the classes of the pair in focus."""
        return self.focus.a.run.class_names

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
            (_("Same prediction"), agreement),
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
    state: Runoff,
    session: Session,
    loaded: LoadedComparison,
    *,
    base: str | None,
    at: str,
    pair: str,
    view: curves.View,
    over_seeds: bool,
) -> Report:
    """All that the report shows; ``pair`` is the one in focus, "ID.ID". The comparison needs two runs."""
    shown = shown_runs(loaded)
    focus = pair_in_focus(loaded.comparison, shown, pair)
    classes, walls, pictures = _evidence(state, loaded, focus)
    style = "\n".join((templating.STATIC / name).read_text(encoding="utf-8") for name in _SHEETS)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return Report(
        created_at=now(),
        runoff=version("runoff"),
        style=style,
        style_hash=f"sha256-{digest}",
        loaded=loaded,
        shown=shown,
        base=base,
        focus=focus,
        at=at,
        figures=_figures(session, loaded, view, over_seeds),
        pairs=pair_table(loaded.comparison, {one.run.id: one.place for one in shown}),
        class_table=classes,
        walls=walls,
        pictures=pictures,
        config=config_rows(shown, loaded.comparison, base),
        environments=[_environment(state, one.run) for one in shown],
        method=_method(loaded.comparison, focus),
    )


def _figures(session: Session, loaded: LoadedComparison, view: curves.View, over_seeds: bool) -> Figures:
    repeats = queries.runs_of_groups(session, [run.group for run in loaded.runs]) if over_seeds else []
    epochs = {run.id: own for run, own in zip(loaded.runs, loaded.epochs, strict=True)}
    epochs |= epochs_of_runs(session, [run for run in repeats if run.id not in epochs])
    singles, groups = curves.curves_of(loaded.runs, epochs, repeats)
    names = [(one.index, one.name) for one in singles] + [(one.index, one.name) for one in groups]
    return Figures(
        accuracy=figure_drawing(curves.figure("accuracy", singles, groups, view), _("Test accuracy of the runs")),
        loss=figure_drawing(curves.figure("loss", singles, groups, view), _("Loss of the runs")),
        words=_curves_words(view, over_seeds),
        legend=sorted(names),
    )


def _curves_words(view: curves.View, over_seeds: bool) -> str:
    parts = [_("by {axis}").format(axis=axis_title(view.axis))]
    if over_seeds:
        parts.append(_("where a recipe has finished repeats, their mean with its 95 % interval (t), single runs thin"))
    if view.smooth:
        parts.append(_("smoothed (exponential, {weight}), the measured values faint").format(weight=f"{view.smooth:g}"))
    return ", ".join(parts)


def _evidence(
    state: Runoff, loaded: LoadedComparison, focus: Focus
) -> tuple[ClassTable | None, list[PairWall], Pictures]:
    """Classes, images and their pictures; nothing where the two runs can't be compared."""
    pair = pair_images(loaded, *focus.places)
    if focus.pair.interval is None or pair is None:
        return None, [], {}
    titles = {
        "a": _("Only {name} right").format(name=focus.a.name),
        "b": _("Only {name} right").format(name=focus.b.name),
        "wrong": _("Both wrong"),
    }
    selection = pair.selection()
    walls = [
        PairWall(title, pair.tiles(selection.of(side)[:_MOST_PICTURES].tolist()), selection.counts[side])
        for side, title in titles.items()
    ]
    indices = {tile.index for wall in walls for tile in wall.tiles}
    run = focus.a.run
    return class_table(pair, run.class_names), walls, _pictures(state, run, indices)


def _pictures(state: Runoff, run: Run, indices: Iterable[int]) -> Pictures:
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
        threads=str(told.get("num_threads", "")),
        precision=str(told.get("precision") or run.precision or ""),
        versions=", ".join(f"{title} {told[key]}" for key, title in names if key in told),
    )


def _method(comparison: Comparison, focus: Focus) -> list[str]:
    """How the numbers were found, a sentence or two each."""
    m, level = comparison.num_tested, level_text(comparison.level)
    return [
        _(
            "Accuracies are counted from the stored predictions for every test image. An interval of one accuracy is Wilson's "
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
            "The verdict is the first that fits: other test images, not comparable; all predictions equal, or the "
            "interval within ±{margin} points, too small to matter; adjusted p at most 0.05 "
            "and an interval without zero, better; else inconclusive."
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
