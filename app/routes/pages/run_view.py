"""The view of a run's page: its URL parameters, and the texts, numbers and links that its template shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, Field

from app.compare.confusion_matrix import Matrix
from app.compare.walls import NamesClasses, Steps, Wall
from app.runs.queue import restart_in
from app.schemas import AccuracyCost, EpochOut, FileOut, RunOut
from app.store.images import Images
from app.store.predictions import Sort
from app.store.tables import ACTIVE, Run
from app.words import number, percent, seconds, seconds_since, whole_seconds
from trainer.i18n import _, ngettext

TILES = Steps(first=45)
_CONFIDENCES = (0.5, 0.9, 0.99)


class RunQuery(BaseModel):
    """The URL parameters of a run's page. Every choice is in the URL, so that Back and shared links work."""

    tab: Literal["predictions", "matrix", "train"] = "predictions"
    epoch: int | None = Field(None, ge=1, le=10_000)
    show: Literal["wrong", "right", "all"] = "wrong"
    label: int | None = Field(None, ge=0, le=65_535)
    predicted: int | None = Field(None, ge=0, le=65_535)
    confidence: float | None = Field(None, ge=0, le=1)
    order: Sort = "worst"
    shown: int = Field(TILES.first, ge=1, le=TILES.most)
    image: int | None = Field(None, ge=0)
    to: str = ""  # one more accuracy whose cost is shown, as ``typed_accuracy`` reads it

    def values(self, **changes: Any) -> dict[str, Any]:
        """The parameters with some of them changed, without those at their defaults."""
        return self.model_copy(update=changes).model_dump(exclude_defaults=True, exclude_none=True)

    def url(self, path: str, **changes: Any) -> str:
        """The URL with some parameters changed."""
        values = self.values(**changes)
        return f"{path}?{urlencode(values)}" if values else path


# What the page shows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tab:
    """A tab."""

    name: str
    words: str
    href: str
    is_current: bool
    count: str = ""


@dataclass(frozen=True)
class ShowLink:
    """A link of the choice between wrong, right and all predictions."""

    words: str
    count: int | None
    href: str
    is_current: bool


@dataclass(frozen=True)
class Select:
    """A filter: a select element with values and their labels. ``title`` is the label for no filter."""

    name: str
    title: str
    values: list[tuple[Any, str]]
    chosen: Any


@dataclass(frozen=True)
class Bar:
    """The progress bar of a running run. ``value`` is None if the progress is unknown."""

    words: str
    beside: str = ""
    value: float | None = None
    max: float = 1


@dataclass(frozen=True)
class Stat:
    """A number in the header, with a note beside it."""

    title: str
    value: str
    beside: str = ""


@dataclass(frozen=True)
class ToAccuracy:
    """The cost of training up to each accuracy, in ascending order, and the error of the accuracy that was typed."""

    costs: list[AccuracyCost]
    typed: str  # as the field shows it, in percent
    problem: str


@dataclass(frozen=True)
class Speed:
    """The training speed over all epochs of a run. FLOP rates are nominal; None if they were not recorded."""

    seconds: float  # of training
    evaluation_seconds: float
    save_seconds: float | None
    images_per_second: float | None
    flops_per_image: float | None
    gflops_per_second: float | None
    matmul_gflops: float | None  # the best matrix product of this machine, measured as the run calculates

    @property
    def share(self) -> float | None:
        """The achieved rate divided by the matrix-product rate; it can exceed 1."""
        return self.gflops_per_second and self.matmul_gflops and self.gflops_per_second / self.matmul_gflops

    @property
    def share_words(self) -> str:
        """The share in percent, which the template continues with the matrix-product rate; empty if it is unknown."""
        share = self.share
        return _("{percent} % of").format(percent=number(100 * share, 0 if share >= 0.1 else 1)) if share else ""


@dataclass(frozen=True)
class TrainImages:
    """The first training images with their labels."""

    images: Images
    items: list[tuple[int, int]]  # (index, label)
    permuted: bool
    augmentation: str

    @property
    def words(self) -> str:
        """The caption of the pictures."""
        count = len(self.items)
        first = ngettext(
            "The first {n} training image and its label", "The first {n} training images and their labels", count
        ).format(n=count)
        if self.permuted:
            return f"{first}, " + _(
                "before and after the permutation of their pixels; the net sees the right-hand image of each pair."
            )
        return f"{first}, " + _("as the net sees them but with the normalization undone; no augmentation.")

    @property
    def is_augmented(self) -> bool:
        return self.augmentation != "none"


@dataclass(frozen=True)
class Answers:
    """The contents of the tabs of a run's page."""

    epoch: int
    num_wrong: int
    num_right: int
    wall: Wall | None = None
    matrix: Matrix | None = None
    train: TrainImages | None = None
    problem: str = ""  # why there are no predictions to show
    defect: str = ""  # set if the predictions contradict the count in the run's log


@dataclass(frozen=True)
class RunPage(NamesClasses):
    """Variables of run.html."""

    run: Run
    out: RunOut
    query: RunQuery
    path: str
    stats: list[Stat]
    left: float | None
    seconds_so_far: float
    place_in_queue: int
    waits_for: str  # why no run can be started, as a sentence
    next_seed: int
    classes: list[str]
    images: Images | None
    answers: Answers | None
    first_images: TrainImages | None  # shown while there are no predictions yet
    config: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    precision_reason: str  # why ``auto`` became the precision in use
    to_accuracy: ToAccuracy
    speed: Speed | None  # None before the first epoch
    epochs: list[EpochOut]  # the latest ones, latest first
    files: list[FileOut]
    log: str
    figure_version: str

    @property
    def name(self) -> str:
        return self.run.name or self.run.id

    @property
    def is_active(self) -> bool:
        return self.run.status in ACTIVE

    @property
    def can_resume(self) -> bool:
        return self.run.status in ("failed", "cancelled")

    @property
    def hanging_words(self) -> str:
        """How long a running run has given no sign of life; empty for one that does."""
        if self.run.hanging_since is None or self.run.status != "running":
            return ""
        return _("No sign of life for {time}.").format(time=seconds(seconds_since(self.run.hanging_since)))

    @property
    def machines_words(self) -> str:
        """Says so where the attempts ran on different kinds of machine; empty otherwise."""
        if len(self.run.machines) < 2:
            return ""
        text = _("Its attempts ran on different kinds of machine, which round differently: {machines}.")
        return text.format(machines="; ".join(self.run.machines))

    @property
    def queue_words(self) -> str:
        """The position of the run in the queue; empty if it is not queued."""
        if self.run.status != "queued":
            return ""
        seconds = restart_in(self.run)
        if seconds:
            return _("Its process ended unexpectedly. It starts again in {seconds} s.").format(
                seconds=number(round(seconds) or 1)
            )
        if self.run.queue_reason == "disk":
            return _("It waits because the disk has too little free space.")
        if self.run.queue_reason == "host" and self.waits_for:
            return self.waits_for
        if self.run.queue_reason == "host":
            return _("It waits for the trainer, which is starting.")
        if self.place_in_queue <= 1:
            return _("First in the queue.")
        return _("Number {n} in the queue.").format(n=number(self.place_in_queue))

    @property
    def bar(self) -> Bar | None:
        """The progress bar; None if the run is not running."""
        progress = self.out.progress
        if self.run.status != "running" or progress is None:
            return None
        if progress.phase:
            words = _("downloading") if progress.phase["what"] == "download" else _("preparing the images")
            total = progress.phase["total"]
            return Bar(words, value=progress.phase["done"] if total else None, max=total or 1)
        if not progress.step:
            return Bar(_("starting"))
        words = _("epoch {epoch} of {epochs}, step {step} of {steps}").format(
            epoch=number(progress.epoch),
            epochs=number(self.run.epochs),
            step=number(progress.step),
            steps=number(progress.total_steps),
        )
        so_far = _("{time} so far").format(time=whole_seconds(self.seconds_so_far))
        return Bar(words, so_far if self.left is None else f", {so_far}", progress.fraction)

    @property
    def epochs_words(self) -> str:
        """Which epochs the table shows."""
        if len(self.epochs) < self.run.epochs_done:
            return _("the latest {n} of {total}").format(n=len(self.epochs), total=number(self.run.epochs_done))
        return _("newest first")

    @property
    def not_reached_words(self) -> str:
        """The text in place of the cost of an accuracy that the run has not reached."""
        return _("not reached") if self.run.status == "finished" else _("not reached yet")

    @property
    def extra_defect(self) -> str:
        """A defect of the chosen epoch that the header does not show."""
        defect = self.answers.defect if self.answers else ""
        return defect if defect != self.out.defect else ""

    @property
    def is_permuted(self) -> bool:
        return self.images is not None and self.images.permutation is not None

    # What is under the tabs

    @property
    def tabs(self) -> list[Tab]:
        wrong = _("{n} wrong").format(n=number(self.answers.num_wrong)) if self.answers else ""
        tabs = [
            ("predictions", _("Test predictions"), wrong),
            ("matrix", _("Confusion matrix"), ""),
            ("train", _("Training images"), ""),
        ]
        return [
            Tab(name, words, self.url(tab=name, label=None, predicted=None), name == self.query.tab, count)
            for name, words, count in tabs
        ]

    @property
    def kept_fields(self) -> list[tuple[str, Any]]:
        """The hidden fields of the form, as (name, value)."""
        query = self.query
        is_cell = query.tab == "matrix" and query.label is not None and query.predicted is not None
        fields = {
            "tab": query.tab if query.tab != "predictions" else None,
            "show": query.show if query.show != "wrong" else None,
            "label": query.label if is_cell else None,
            "predicted": query.predicted if is_cell else None,
            "to": query.to or None,
            "image": query.image,
        }
        return [(name, value) for name, value in fields.items() if value is not None]

    @property
    def has_slider(self) -> bool:
        """Whether there is a slider to choose the epoch."""
        return self.query.tab != "train" and self.run.epochs_done > 1

    @property
    def show_links(self) -> list[ShowLink]:
        assert self.answers is not None
        links: list[tuple[str, str, int | None]] = [
            ("wrong", _("Wrong"), self.answers.num_wrong),
            ("right", _("Right"), self.answers.num_right),
            ("all", _("All"), None),
        ]
        return [ShowLink(words, count, self.url(show=show), show == self.query.show) for show, words, count in links]

    @property
    def selects(self) -> list[Select]:
        """The filters of the predictions."""
        classes: list[tuple[Any, str]] = list(enumerate(self.classes))
        levels: list[tuple[Any, str]] = [
            (value, _("at least {percent} %").format(percent=percent(value, 0))) for value in _CONFIDENCES
        ]
        return [
            Select("label", _("Any true class"), classes, self.query.label),
            Select("predicted", _("Any predicted class"), classes, self.query.predicted),
            Select("confidence", _("Any confidence"), levels, self.query.confidence),
        ]

    @property
    def orders(self) -> list[tuple[str, str, bool]]:
        """The orders of the tiles, as (URL value, label, whether it is chosen)."""
        words = {
            "worst": _("Worst first"),
            "-confidence": _("Most confident first"),
            "confidence": _("Least confident first"),
            "index": _("In order"),
        }
        return [(name if name != "worst" else "", text, name == self.query.order) for name, text in words.items()]

    @property
    def wall_words(self) -> str:
        """A caption: what a tile shows, and in which order the tiles are."""
        sentences = [_("True class, predicted class and confidence.")]
        if self.query.order == "worst" and self.query.show == "wrong":
            sentences.append(_("Worst first: the most confident wrong predictions."))
        if self.is_permuted:
            sentences.append(_("Shown without the permutation."))
        return " ".join(sentences)

    @property
    def cell_words(self) -> str:
        """The caption of the chosen cell of the confusion matrix, with its number of images."""
        assert self.answers is not None
        assert self.answers.wall is not None
        assert self.query.label is not None
        assert self.query.predicted is not None
        count = self.answers.wall.total
        if self.query.label == self.query.predicted:
            words = ngettext("{label} recognised: {n} image", "{label} recognised: {n} images", count)
        else:
            words = ngettext(
                "{label} predicted as {answer}: {n} image", "{label} predicted as {answer}: {n} images", count
            )
        answer = self.class_name(self.query.predicted)
        return words.format(label=self.class_name(self.query.label), answer=answer, n=number(count))

    def url(self, **changes: Any) -> str:
        """A URL of this page. A change of filters or order goes back to the first tiles and closes the opened image."""
        if not changes.keys() & {"image", "shown"}:
            changes = {"image": None, "shown": TILES.first, **changes}
        return self.query.url(self.path, **changes)
