"""Uploaded archives below ``HOME/uploads``, kept until they are imported: ``NAME/FILE``, described by ``NAME.json``.

The description is written last, so an upload without one is incomplete. It is removed first, so an upload that is removed
only in part is not imported again.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from trainer.datasets.facts import NAME
from trainer.files import DamagedFile, now, read_sealed, sync_folder, write_sealed
from trainer.i18n import _


@dataclass(frozen=True)
class Description:
    """The description of an upload. ``size`` is in pixels per side; ``error`` says why the import failed."""

    file: str
    num_bytes: int
    size: int
    received_at: str
    interruptions: int = 0  # how often the import was started without an orderly end
    error: dict[str, str] | None = None
    failed_at: str = ""


@dataclass(frozen=True)
class Upload:
    """An uploaded archive that becomes the data set ``name``."""

    home: Path
    name: str
    about: Description

    @property
    def folder(self) -> Path:
        return _folder(self.home) / self.name

    @property
    def path(self) -> Path:
        return self.folder / self.about.file

    def change(self, **values: Any) -> Upload:
        """Write the description with other values, and return the upload with it."""
        about = replace(self.about, **values)
        write_sealed(_description(self.home, self.name), asdict(about))
        return replace(self, about=about)

    def remove(self) -> None:
        """Remove the archive and its description."""
        remove(self.home, self.name)

    def fail(self, error: dict[str, str]) -> Upload:
        """Remove the archive, and keep why its import has failed; only in memory if that can't be written."""
        shutil.rmtree(self.folder, ignore_errors=True)  # first, because the disk may be full
        values: dict[str, Any] = {"error": error, "failed_at": now()}
        try:
            return self.change(**values)
        except OSError:
            return replace(self, about=replace(self.about, **values))


def store(home: Path, name: str, file: BinaryIO, file_name: str, size: int) -> Upload:
    """Copy an uploaded file into the home. Raises ``OSError`` and then leaves nothing behind."""
    remove(home, name)  # what an earlier import of this name left
    folder = _folder(home) / name
    folder.mkdir(parents=True)
    try:
        path = folder / _safe_file_name(file_name)
        with path.open("wb") as target:
            shutil.copyfileobj(file, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        sync_folder(folder)
        upload = Upload(home, name, Description(path.name, path.stat().st_size, size, received_at=now()))
        return upload.change()
    except BaseException:
        remove(home, name)
        raise


def remove(home: Path, name: str) -> None:
    """Remove the upload of this name, complete or not, if there is one."""
    description = _description(home, name)
    if description.exists():
        description.unlink()
        sync_folder(description.parent)
    shutil.rmtree(_folder(home) / name, ignore_errors=True)


def stored(home: Path) -> list[Upload]:
    """All uploads that have a description, oldest first. Everything else below ``uploads`` is removed.

    An upload whose description or archive is damaged is returned as failed. Raises ``OSError``.
    """
    folder = _folder(home)
    folder.mkdir(parents=True, exist_ok=True)
    names = [path.stem for path in folder.glob("*.json") if path.is_file() and NAME.fullmatch(path.stem)]
    uploads = sorted((_read(home, name) for name in names), key=lambda upload: upload.about.received_at)
    kept = {path for upload in uploads for path in (_description(home, upload.name), upload.folder)}
    for path in folder.iterdir():
        if path not in kept:
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return uploads


def _read(home: Path, name: str) -> Upload:
    try:
        values = read_sealed(_description(home, name)) or {}
        known = {each.name for each in fields(Description)}
        upload = Upload(home, name, Description(**{key: value for key, value in values.items() if key in known}))
        if upload.about.error or upload.path.stat().st_size == upload.about.num_bytes:
            return upload
    except (DamagedFile, TypeError, OSError):
        upload = Upload(home, name, Description(file="", num_bytes=0, size=0, received_at=now()))
    error = {
        "message": _("The import was interrupted, and the uploaded archive is no longer complete."),
        "advice": _("Upload it again."),
    }
    return upload.fail(error)


def _folder(home: Path) -> Path:
    return home / "uploads"


def _description(home: Path, name: str) -> Path:
    return _folder(home) / f"{name}.json"


def _safe_file_name(given: str) -> str:
    """The name of an uploaded file in safe characters. Its suffix is kept, because it tells the kind of archive."""
    kept = "".join(c if c.isalnum() or c in " ._-()" else "_" for c in Path(given).name[-60:])
    return kept.lstrip(".") or "archive"
