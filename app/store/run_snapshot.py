"""The files of a run that belong together, taken at one moment while its process may go on writing."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO

from trainer.i18n import _
from trainer.run_folder import RunFolder

_TRIES, _PAUSE_SECONDS = 100, 0.05
_WRITTEN_IN_PARTS = re.compile(rb'"type":\s?"(step|progress)"')
_EPOCH = re.compile(rb'"type":\s?"epoch"')
_END = re.compile(rb'"type":\s?"(finished|failed|cancelled)"')
_NUMBERED = re.compile(r"epoch-(\d+)\.")


class ChangesTooFast(RuntimeError):
    """The files of a run could not be caught at one moment."""


@dataclass
class Snapshot:
    """The files of a run that belong together. An open checkpoint can be read to its end even if it is pruned."""

    folder: RunFolder
    last_epoch: int | None  # later ones are left out; None where nobody writes: the copy has all files
    opened: dict[str, tuple[IO[bytes], os.stat_result]] = field(default_factory=dict)  # by path within the folder

    def wants(self, path: Path) -> bool:
        """Whether a file belongs to the copy: what a running process wrote for its next epoch does not."""
        match = _NUMBERED.match(path.name)
        return self.last_epoch is None or match is None or int(match[1]) <= self.last_epoch

    def lacks(self, path: Path) -> bool:
        """Whether a file is still to be copied: the JSON files beside the log were taken with it, or are newer."""
        return self.wants(path) and not (path.parent == self.folder.path and path.suffix == ".json")


def take_snapshot(folder: RunFolder, stack: ExitStack) -> Snapshot | None:
    """Take the log, the small files and the open checkpoints of a run; None where its folder is gone.

    They belong together if no epoch, start or end was added to the log meanwhile. Otherwise they are taken again.
    """
    for _try in range(_TRIES):
        with ExitStack() as opened:
            try:
                snapshot = _take(folder, opened)
            except FileNotFoundError:  # pruned, or the run is deleted
                if not folder.path.exists():
                    return None
                snapshot = None
            if snapshot is not None:
                stack.push(opened.pop_all())
                return snapshot
        time.sleep(_PAUSE_SECONDS)
    raise ChangesTooFast(_("The files of run {id} change too fast to be copied. Try again.").format(id=folder.id))


def _take(folder: RunFolder, opened: ExitStack) -> Snapshot | None:
    """One try; None where the run moved on meanwhile. Between the two looks at the log nothing slow is done."""
    is_alive = folder.is_alive()
    log = _read_log(folder)
    taken: dict[str, tuple[IO[bytes], os.stat_result]] = {}
    for path in [*folder.path.glob("*.json"), *folder.path.glob("checkpoints/*"), folder.stop_path]:
        if not path.name.startswith(".") and path.is_file():
            file = opened.enter_context(path.open("rb"))
            taken[path.relative_to(folder.path).as_posix()] = (file, os.fstat(file.fileno()))
    if _has_moved_on(folder, log):
        return None
    if log is not None:
        if is_alive:
            log = log[: log.rfind(b"\n") + 1]
        taken["events.jsonl"] = (BytesIO(log), _with_size(folder.events_path.stat(), len(log)))
    if is_alive and "manifest.json" in taken and not _has_end(log or b""):
        return None  # the run is about to write its last line
    snapshot = Snapshot(folder, _last_epoch(log) if is_alive else None)
    snapshot.opened = {name: opened for name, opened in sorted(taken.items()) if snapshot.wants(Path(name))}
    return snapshot


def _read_log(folder: RunFolder) -> bytes | None:
    """The event log; None where there is none."""
    try:
        return folder.events_path.read_bytes()
    except FileNotFoundError:
        return None


def _has_moved_on(folder: RunFolder, log: bytes | None) -> bool:
    """Whether more than losses and progress was added to the log since it was read, or anything was cut off."""
    try:
        with folder.events_path.open("rb") as file:
            if log is None or os.fstat(file.fileno()).st_size < len(log):
                return True
            file.seek(log.rfind(b"\n") + 1)
            added = file.read().splitlines()
    except FileNotFoundError:
        return log is not None
    torn = log[log.rfind(b"\n") + 1 :]
    return added != [torn] and not all(map(_WRITTEN_IN_PARTS.search, added))


def _last_epoch(log: bytes | None) -> int:
    """The highest epoch in a log, 0 without one."""
    lines = filter(_EPOCH.search, (log or b"").splitlines())
    return max((int(json.loads(line)["epoch"]) for line in lines), default=0)


def _has_end(log: bytes) -> bool:
    return _END.search(log.rstrip(b"\n").rpartition(b"\n")[2]) is not None


def _with_size(status: os.stat_result, size: int) -> os.stat_result:
    values = list(status)
    values[stat.ST_SIZE] = size
    return os.stat_result(values, {"st_mtime_ns": status.st_mtime_ns, "st_atime_ns": status.st_atime_ns})
