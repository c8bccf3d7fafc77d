"""Whether a run folder is still being made or copied. Such a folder must not be read yet."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime

from trainer.run_folder import RunFolder

_UNREADY_SECONDS = 600.0  # how long a new folder may lack its run.json: the time that a process needs to start
COPYING_SECONDS = 10.0  # how long a copied folder must be without a change before it counts as complete
_MADE_SECONDS = 5.0  # config.json is written within this time after the run was created, unless the folder is a copy


def is_unready(folder: RunFolder) -> bool:
    """Whether files may still be added to a new folder: it has no run.json yet, or is being copied here."""
    try:
        if not (folder.path / "run.json").exists():
            return time.time() - folder.path.stat().st_mtime < _UNREADY_SECONDS
        return _is_copy(folder) and time.time() - last_change(folder) < COPYING_SECONDS and not folder.is_alive()
    except OSError:
        return False


def _is_copy(folder: RunFolder) -> bool:
    """Whether the files are younger than the run, or run.json can't be read."""
    record = folder.read_run()
    if record is None or not folder.config_path.exists():
        return True
    try:
        created = datetime.fromisoformat(record["created_at"]).timestamp()
    except (LookupError, TypeError, ValueError):
        return False
    return folder.config_path.stat().st_ctime - created > _MADE_SECONDS


def last_change(folder: RunFolder) -> float:
    """When a file of the folder was last written, renamed or copied here. Copying can't set this time back."""
    changes = [0.0]
    for path in [folder.path, *folder.path.rglob("*")]:
        with suppress(FileNotFoundError):
            changes.append(path.stat().st_ctime)
    return max(changes)
