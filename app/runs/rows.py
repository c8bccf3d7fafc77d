"""What a row of the runs table shows: one run, or the repeats of one config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from app.runs.sweeps import without_seed
from app.schemas import RunProgress
from app.statistics import t_interval
from app.store.queries import stored_defect
from app.store.tables import ENDED, Run
from app.words import statuses_in_words
from trainer.i18n import N_, _, ngettext

Interval = tuple[float, float]  # of an accuracy: a fraction from 0 to 1

FAILURES = {
    "DatasetMissing": N_("Data set missing."),
    "DatasetError": N_("Data set missing."),
    "DatasetChanged": N_("Data set changed."),
    "DatasetDamaged": N_("Data set damaged."),
    "NonFiniteLoss": N_("Loss became NaN."),
    "OutOfMemory": N_("Out of memory."),
    "DiskFull": N_("Disk full."),
    "DeviceMissing": N_("Device missing."),
    "PrecisionUnsupported": N_("Precision not supported."),
    "ProcessVanished": N_("Process ended unexpectedly."),
    "RunDamaged": N_("Damaged."),
    "ImportedUnfinished": N_("Not finished."),
}


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
    def failure(self) -> tuple[str, str]:
        """Why a run failed: two or three words, then what happened and what to do."""
        error = self.run.error or {}
        title = FAILURES.get(str(error.get("error")), "")
        sentence = f"{error.get('message', '')} {error.get('advice', '')}".strip()
        return (_(title), sentence) if title else (_("Failed."), sentence)

    @property
    def is_missing_dataset(self) -> bool:
        return (self.run.error or {}).get("error") in ("DatasetMissing", "DatasetError")


@dataclass(frozen=True, eq=False)
class GroupRow:
    """Repeats of one config as one row: mean and interval over seeds. ``members`` are in the order of the table."""

    group: str
    members: list[RunRow]
    is_open: bool

    is_group = True

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
    def fraction(self) -> float:
        """How much of the group's work is done, 0 to 1."""
        done = sum(1.0 if row.has_ended else row.progress.fraction if row.progress else 0.0 for row in self.members)
        return done / len(self.members)

    @property
    def states(self) -> str:
        """``3 of 5 finished, 1 failed``; empty where all are finished."""
        return (
            "" if self.num_finished == len(self.members) else statuses_in_words(row.run.status for row in self.members)
        )

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
    def mean(self) -> float | None:
        values = self.accuracies
        return sum(values) / len(values) if values else None

    @cached_property
    def interval(self) -> Interval | None:
        """95 % t interval of the mean over seeds; with a single seed, that of its accuracy."""
        values = self.accuracies
        if len(values) < 2:
            return self.measured[0].interval if values else None
        low, high = t_interval(values)
        return max(0.0, low), min(1.0, high)

    @cached_property
    def best(self) -> Run | None:
        """The member with the highest accuracy after its last epoch."""
        return max((row.run for row in self.measured), key=lambda run: run.test_accuracy or 0, default=None)

    @property
    def train_seconds(self) -> float:
        return sum(row.run.train_seconds for row in self.members)

    @property
    def images_per_second(self) -> float | None:
        images = sum((row.run.num_train or 0) * row.run.epochs_done for row in self.members)
        return images / self.train_seconds if images and self.train_seconds else None


Row = RunRow | GroupRow


# The numbers of a row ------------------------------------------------------------------------------------------------


def accuracy_of(row: Row) -> float | None:
    """Test accuracy of the row: a group's is the mean over its seeds."""
    return row.mean if isinstance(row, GroupRow) else row.run.test_accuracy


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
