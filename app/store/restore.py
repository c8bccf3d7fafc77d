"""The way back from a backup to a home. Every file is checked before the first one gets its name."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from pydantic import ValidationError

from app.settings import Settings
from app.store.backup import LISTING, BackupError, BackupFile, Listing, copy_file
from trainer.i18n import _
from trainer.run_folder import sync_folder

_UNFINISHED = ".restoring"  # below the home: the files before they get their names
_NO_CONTENT = {_UNFINISHED, "server.lock"}


def read_listing(source: Path) -> Listing:
    """The listing of a backup. Raises ``BackupError`` where it is missing or not valid."""
    if not source.is_dir():
        raise BackupError(_("There is no backup in {path}.").format(path=source))
    try:
        return Listing.model_validate_json((source / LISTING).read_bytes())
    except FileNotFoundError:
        message = _("The backup in {path} is incomplete: it has no {name}, which is written last.")
        raise BackupError(message.format(path=source, name=LISTING)) from None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        message = _("{path} can't be read as the listing of a backup: {reason}.")
        raise BackupError(message.format(path=source / LISTING, reason=reason)) from None


def check_home_is_empty(home: Path) -> None:
    """Raises ``BackupError`` where the home holds anything but an interrupted restore."""
    if home.exists() and (not home.is_dir() or {path.name for path in home.iterdir()} - _NO_CONTENT):
        message = _("{home} is not empty. Restore into an empty or new folder: set RUNOFF_HOME.")
        raise BackupError(message.format(home=home))


def restore(settings: Settings, source: Path, listing: Listing) -> None:
    """Copy a backup into the empty home of ``settings``, which the caller has locked.

    Raises ``BackupError`` where a file is missing or has other bytes than when the backup was made; the home stays empty.
    """
    check_home_is_empty(settings.home)
    unfinished = settings.home / _UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        for file in listing.files:
            _restore_file(source / file.path, unfinished / file.path, file)
        os.sync()
        for path in sorted(unfinished.iterdir()):
            path.rename(settings.home / path.name)
        sync_folder(settings.home)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _restore_file(source: Path, target: Path, file: BackupFile) -> None:
    try:
        with source.open("rb") as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
                raise BackupError(_("{path} does not have the size that the backup lists.").format(path=source))
            _size, sha256 = copy_file(opened, target, file.size)
    except FileNotFoundError:
        raise BackupError(_("{path} is missing from the backup.").format(path=source)) from None
    if sha256 != file.sha256:
        raise BackupError(_("{path} is damaged: its SHA-256 is not the one that the backup lists.").format(path=source))
    target.chmod(file.mode)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
