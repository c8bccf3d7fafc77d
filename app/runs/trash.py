"""Deleted runs: their folders are kept in ``trash`` for 30 days, so that a deletion can be undone."""

from __future__ import annotations

import logging
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

logger = logging.getLogger(__name__)
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
        try:
            is_old = not path.is_symlink() and time.time() - path.lstat().st_mtime > DAYS_KEPT * _DAY_SECONDS
            hidden = path
            if is_old and not path.name.startswith("."):
                hidden = path.rename(path.with_name(f".{path.name}.{time.time_ns()}"))  # a part can't be taken back
                yield path
            if hidden.name.startswith("."):
                shutil.rmtree(hidden, ignore_errors=True)
        except OSError as error:
            logger.warning("The deleted run %s could not be removed: %s", path.name, error)


def _path(home: Path, run_id: str) -> Path:
    return home / "trash" / run_id
