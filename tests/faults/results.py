"""What a run has reported and produced, from its folder."""

from __future__ import annotations

from collections import Counter
from typing import Any

from app.runs.check import check_home
from app.settings import Settings
from trainer.event_log import read_log
from trainer.run_folder import RunFolder, read_json, sha256


def results(folder: RunFolder) -> dict[str, Any]:
    """The hashes of weights and predictions, and the counters. Which losses are still to be reported is up to the clock."""
    files = [*folder.checkpoints.glob("*.safetensors"), *folder.predictions.glob("*")]
    counters = {path.name: read_json(path) or {} for path in folder.checkpoints.glob("*.json")}
    for values in counters.values():
        values.pop("pending_losses", None)
    return {path.relative_to(folder.path).as_posix(): sha256(path) for path in files} | counters


def reported_epochs(folder: RunFolder) -> list[int]:
    """The epoch of each line that reports one, in the order of the log."""
    return [event["epoch"] for event in read_log(folder.events_path).events if event["type"] == "epoch"]


def trained_attempt(folder: RunFolder) -> int:
    """The latest attempt that has begun to train."""
    attempts = [event["attempt"] for event in read_log(folder.events_path).events if event["type"] == "started"]
    return max(attempts, default=0)


def ending(folder: RunFolder) -> dict[str, Any] | None:
    """The event that ended the run, if it is the last one."""
    log = read_log(folder.events_path)
    return log.last if log.has_end else None


def damage_in(folder: RunFolder) -> list[str]:
    """What ``runoff check --full`` says of a run."""
    (checked,) = check_home(Settings(home=folder.home), [folder.id], full=True)
    return checked.problems


def problems_of(folder: RunFolder) -> list[str]:
    """Damage, and epochs that are reported twice or out of order."""
    epochs = reported_epochs(folder)
    if epochs == [*range(1, len(epochs) + 1)]:
        return damage_in(folder)
    return [*damage_in(folder), f"epochs are reported as {dict(Counter(epochs))}"]
