"""Deleted runs: their folders are kept in ``trash`` for 30 days, so that a deletion can be undone."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from app.errors import Conflict, NotFound
from trainer.files import sync_folder
from trainer.i18n import _
from trainer.run_folder import RunFolder, is_id

DAYS_KEPT = 30
_DAY_SECONDS = 24 * 3600


def put(folder: RunFolder) -> None:
    """Move a run folder to the trash, in one step that a power cut can't interrupt. Raises ``OSError``."""
    target = _path(folder.home, folder.id)
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)  # an earlier run of this id
    os.utime(folder.path)  # when it was deleted
    _move(folder.path, target)


def take_back(home: Path, run_id: str) -> RunFolder:
    """Move a run folder back. Raises ``NotFound`` for one that is not in the trash, ``Conflict`` for an id in use."""
    source, folder = _path(home, run_id), RunFolder(home / "runs" / run_id)
    if not is_id(run_id) or not source.is_dir():
        message = _("There is no deleted run {id}. Deleted runs are kept for {days} days.")
        raise NotFound(message.format(id=run_id[:40], days=DAYS_KEPT))
    if folder.path.exists():
        raise Conflict(_("There is a run {id} already.").format(id=run_id))
    _move(source, folder.path)
    return folder


def _move(source: Path, target: Path) -> None:
    """Rename a folder. If only the sync fails, the rename counts as done. Raises ``OSError``."""
    source.rename(target)
    with suppress(OSError):
        for parent in (source.parent, target.parent):
            sync_folder(parent)


def purge(home: Path) -> Iterator[Path]:
    """Remove runs that were deleted more than 30 days ago, and what an earlier try left of them; yield their paths."""
    for path in sorted((home / "trash").glob("*")):
        is_old = not path.is_symlink() and time.time() - path.lstat().st_mtime > DAYS_KEPT * _DAY_SECONDS
        if is_old and not path.name.startswith("."):
            path = path.rename(path.with_name(f".{path.name}"))  # a run of which a part is gone can't be undeleted
            yield path.with_name(path.name[1:])
        if path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)


def _path(home: Path, run_id: str) -> Path:
    return home / "trash" / run_id
