"""Why a run failed or is damaged, and what the user can do about it, for the tables of runs."""

from __future__ import annotations

from dataclasses import dataclass

from app.store.tables import Run
from trainer.i18n import N_, _

_TITLES = {
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
_MISSING_DATASET = ("DatasetMissing", "DatasetError")


@dataclass(frozen=True)
class HelpLink:
    """A page where the user can do something about the failure."""

    href: str
    icon: str
    words: str


@dataclass(frozen=True)
class Failure:
    """Why a run failed or is damaged: two or three words, and what happened with what to do."""

    title: str
    sentence: str
    links: list[HelpLink]
    is_resumable: bool


def failure_of(run: Run) -> Failure | None:
    """The failure of a failed or damaged run; None for any other run."""
    if run.status not in ("failed", "damaged"):
        return None
    error = run.error or {}
    sentence = f"{error.get('message', '')} {error.get('advice', '')}".strip()
    links = []
    if error.get("error") in _MISSING_DATASET:
        links.append(HelpLink("/datasets#import", "upload", _("Import")))
    if run.status == "damaged":
        links.append(HelpLink("/check", "check", _("Check")))
    title = _TITLES.get(str(error.get("error")))
    return Failure(_(title) if title else _("Failed."), sentence, links, run.status == "failed")
