"""What a row of the runs table shows: one run, or the repeats of one config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from app.runs.failures import Failure, failure_of
from app.runs.sweeps import without_seed
from app.schemas import RunProgress
from app.statistics import t_interval
from app.store.queries import stored_defect
from app.store.tables import ENDED, Run
from app.words import statuses_in_words
from trainer.i18n import _, ngettext

Interval = tuple[float, float]  # of an accuracy: a fraction from 0 to 1
_LONG_NAME = 28  # characters; the table may cut longer names


@dataclass(frozen=True)
class ProgressBar:
    """The progress bar of a row. ``value`` is None if the progress is unknown."""

    words: str
    value: float | None
    max: float = 1
    left: float | None = None  # seconds until the end, now
    can_cancel: bool = True


@dataclass(frozen=True)
class BestAccuracy:
    """The best test accuracy of a row, a fraction, and where it was reached."""

    accuracy: float
    words: str


@dataclass(frozen=True, eq=False)
class RunRow:
    """One run. Rows are compared by identity: the same object is the same content."""

    run: Run
    interval: Interval | None
    losses: list[float]
    progress: RunProgress | None
    left: float | None  # seconds until the end, now
    waiting: str  # of a queued run: its place in the queue
    is_child: bool = False

    is_group = False

    @property
    def ids(self) -> list[str]:
        return [self.run.id]

    @property
    def comparable(self) -> list[str]:
        return [self.run.id] if self.run.epochs_done else []

    @property
    def name(self) -> str:
        return self.run.name or self.run.id

    @property
    def has_ended(self) -> bool:
        return self.run.status in ENDED

    @property
    def css(self) -> str:
        """The CSS classes of the row."""
        return ("done" if self.has_ended else "") + (" child" if self.is_child else "")

    @property
    def link_css(self) -> str:
        return "strong nowrap" if self.is_child else "strong"

    @property
    def link_words(self) -> str:
        """The name, or for a repeat below its group the seed, because the name is in the row of the group."""
        return _("seed {seed}").format(seed=self.run.seed) if self.is_child else self.name

    @property
    def link_title(self) -> str | None:
        """The name if it may be cut, else None."""
        return self.name if not self.is_child and len(self.name) > _LONG_NAME else None

    @property
    def tags(self) -> list[str]:
        return self.run.tags

    @property
    def sweep(self) -> str | None:
        return self.run.sweep

    @property
    def has_marks(self) -> bool:
        """Whether there is a second line with tags and the like below the name."""
        return not self.is_child and bool(self.tags or self.sweep or self.run.imported)

    @property
    def dataset_words(self) -> str:
        return _dataset_words(self.run)

    @property
    def bar(self) -> ProgressBar | None:
        """The progress bar; None if the run is not running."""
        progress = self.progress
        if self.run.status != "running" or progress is None:
            return None
        if self.run.cancel_requested:
            return ProgressBar(_("stopping at the next step"), progress.fraction, can_cancel=False)
        if progress.phase:
            words = _("downloading") if progress.phase["what"] == "download" else _("preparing the images")
            total = progress.phase["total"]
            return ProgressBar(words, progress.phase["done"] if total else None, total or 1)
        if not progress.step:
            return ProgressBar(_("starting"), None)
        words = _("epoch {epoch} of {total}").format(epoch=progress.epoch, total=self.run.epochs)
        return ProgressBar(words, progress.fraction, left=self.left)

    @property
    def epochs_words(self) -> str:
        return _epochs_words(self.run)

    @property
    def epochs_css(self) -> str:
        return "muted" if self.run.status == "finished" else "faint"

    @property
    def is_stopped_early(self) -> bool:
        return self.run.status == "finished" and self.run.epochs_done < self.run.epochs

    @property
    def accuracy(self) -> float | None:
        """Test accuracy after the last epoch."""
        return self.run.test_accuracy

    accuracy_title = None
    accuracies = ()

    @property
    def best(self) -> BestAccuracy | None:
        """The best test accuracy of all epochs."""
        if self.run.best_test_accuracy is None:
            return None
        return BestAccuracy(self.run.best_test_accuracy, _("ep {epoch}").format(epoch=self.run.best_epoch))

    @property
    def train_seconds(self) -> float:
        return self.run.train_seconds

    @property
    def images_per_second(self) -> float | None:
        return self.run.images_per_second

    @property
    def defect(self) -> str:
        """A sentence where the stored predictions contradict the log, else ""."""
        return stored_defect(self.run)

    @property
    def nothing_measured(self) -> str:
        """Why the run has no accuracy and will get none; empty otherwise."""
        if self.run.test_accuracy is not None or not self.has_ended:
            return ""
        if self.run.status == "cancelled" and self.run.started_at is None:
            return _("cancelled while waiting")
        return _("none: no epoch was completed")

    @property
    def failure(self) -> Failure | None:
        """Why the run failed or is damaged; None for other runs."""
        return failure_of(self.run)


@dataclass(frozen=True, eq=False)
class GroupRow:
    """Repeats of one config as one row: mean and interval over seeds. ``members`` are in the order of the table."""

    group: str
    members: list[RunRow]
    is_open: bool

    is_group = True
    is_child = False
    nothing_measured = ""
    losses = ()

    @property
    def run(self) -> Run:
        return self.members[0].run

    @property
    def ids(self) -> list[str]:
        return [row.run.id for row in self.members]

    @property
    def comparable(self) -> list[str]:
        return [row.run.id for row in self.members if row.run.epochs_done]

    @property
    def name(self) -> str:
        return without_seed(self.run.name) or f"{self.run.model}, {self.run.dataset}"

    @property
    def has_ended(self) -> bool:
        return all(row.has_ended for row in self.members)

    @property
    def css(self) -> str:
        """The CSS classes of the row."""
        return "group done" if self.has_ended else "group"

    @property
    def badge(self) -> tuple[str, str, str]:
        """Kind, icon and words of the badge in the column of the status."""
        kind, icon = ("running", "spin") if self.num_running else ("", "copy")
        return kind, icon, self.repeats

    @property
    def toggle_icon(self) -> str:
        """The icon of the button that shows or hides the repeats."""
        return "down" if self.is_open else "right"

    @property
    def shown_members(self) -> list[RunRow]:
        """The repeats that have rows below this one."""
        return self.members if self.is_open else []

    @property
    def dataset_words(self) -> str:
        return _dataset_words(self.run)

    @property
    def seeds(self) -> str:
        """``seeds 0 to 4``, or all of them where some are missing."""
        seeds = sorted({row.run.seed for row in self.members})
        if len(seeds) > 2 and seeds[-1] - seeds[0] == len(seeds) - 1:
            return _("seeds {first} to {last}").format(first=seeds[0], last=seeds[-1])
        shown = ", ".join(str(seed) for seed in seeds[:6]) + (" …" if len(seeds) > 6 else "")
        return _("seeds {seeds}").format(seeds=shown)

    @property
    def repeats(self) -> str:
        return ngettext("{n} repeat", "{n} repeats", len(self.members)).format(n=len(self.members))

    @property
    def tags(self) -> list[str]:
        """The tags that all members have."""
        return [tag for tag in self.run.tags if all(tag in row.run.tags for row in self.members)]

    @property
    def sweep(self) -> str | None:
        """The sweep of all members, None if they are not of one sweep."""
        sweeps = {row.run.sweep for row in self.members}
        return sweeps.pop() if len(sweeps) == 1 else None

    @property
    def defects(self) -> str:
        """How many repeats have a defect; "" where none has."""
        count = sum(row.run.defect is not None for row in self.members)
        return ngettext("{n} repeat has a defect", "{n} repeats have a defect", count).format(n=count) if count else ""

    @property
    def num_running(self) -> int:
        return sum(row.run.status == "running" for row in self.members)

    @property
    def num_finished(self) -> int:
        return sum(row.run.status == "finished" for row in self.members)

    @property
    def bar(self) -> ProgressBar | None:
        """The progress bar over all repeats; None if none of them is running."""
        if not self.num_running:
            return None
        done = sum(1.0 if row.has_ended else row.progress.fraction if row.progress else 0.0 for row in self.members)
        return ProgressBar(self.states, done / len(self.members))

    @property
    def states(self) -> str:
        """``3 of 5 finished, 1 failed``; empty where all are finished."""
        return (
            "" if self.num_finished == len(self.members) else statuses_in_words(row.run.status for row in self.members)
        )

    @property
    def epochs_words(self) -> str:
        """The statuses of the repeats, or the epochs of each if all are finished."""
        return self.states or _epochs_words(self.run)

    @property
    def epochs_css(self) -> str:
        return "faint small" if self.states else "muted"

    @cached_property
    def measured(self) -> list[RunRow]:
        """The newest finished run of each seed. The mean is taken over these."""
        newest: dict[int, RunRow] = {}
        for row in self.members:
            other = newest.get(row.run.seed)
            if row.run.status == "finished" and (other is None or row.run.created_at > other.run.created_at):
                newest[row.run.seed] = row
        return [row for row in newest.values() if row.run.test_accuracy is not None]

    @cached_property
    def accuracies(self) -> list[float]:
        return [row.run.test_accuracy for row in self.measured if row.run.test_accuracy is not None]

    @property
    def accuracy(self) -> float | None:
        """The mean of the test accuracies over seeds."""
        values = self.accuracies
        return sum(values) / len(values) if values else None

    @property
    def accuracy_title(self) -> str:
        """What the accuracy is, as a hint."""
        count = len(self.accuracies)
        return ngettext("accuracy of {n} seed", "mean of {n} seeds with its 95 % t interval", count).format(n=count)

    @cached_property
    def interval(self) -> Interval | None:
        """95 % t interval of the mean over seeds; with a single seed, that of its accuracy."""
        values = self.accuracies
        if len(values) < 2:
            return self.measured[0].interval if values else None
        low, high = t_interval(values)
        return max(0.0, low), min(1.0, high)

    @property
    def best(self) -> BestAccuracy | None:
        """The highest accuracy after the last epoch among the repeats."""
        run = max((row.run for row in self.measured), key=lambda run: run.test_accuracy or 0, default=None)
        if run is None or run.test_accuracy is None:
            return None
        return BestAccuracy(run.test_accuracy, _("seed {seed}").format(seed=run.seed))

    @property
    def train_seconds(self) -> float:
        return sum(row.run.train_seconds for row in self.members)

    @property
    def images_per_second(self) -> float | None:
        images = sum((row.run.num_train or 0) * row.run.epochs_done for row in self.members)
        return images / self.train_seconds if images and self.train_seconds else None


def _dataset_words(run: Run) -> str:
    permuted = _("{dataset}, permuted").format(dataset=run.dataset)
    return permuted if run.config.get("permute_pixels") else run.dataset


def _epochs_words(run: Run) -> str:
    return _("{done} of {total}").format(done=run.epochs_done, total=run.epochs)


Row = RunRow | GroupRow


# The numbers of a row ------------------------------------------------------------------------------------------------


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def members_of(row: Row) -> list[RunRow]:
    """All runs of the row."""
    return row.members if isinstance(row, GroupRow) else [row]


def measured_of(row: Row) -> list[RunRow]:
    """The runs that the row's accuracy is the mean of."""
    return row.measured if isinstance(row, GroupRow) else [row]


def seconds_of(row: Row) -> float | None:
    """Training seconds of one run of the row, on average."""
    return mean_of_known([one.run.train_seconds or None for one in members_of(row)])


def validation_of(row: Row) -> float | None:
    """Validation accuracy of the row's runs, on average."""
    return mean_of_known([one.run.validation_accuracy for one in measured_of(row)])
