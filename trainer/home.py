"""Where things lie on disk, from the environment: ``RUNOFF_HOME`` and ``RUNOFF_DATASETS``; and which home it is."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from trainer.files import DamagedFile, create_sealed, read_sealed, write_sealed


def home() -> Path:
    """The folder that holds everything Runoff writes; default ``~/.runoff``."""
    return Path(os.environ.get("RUNOFF_HOME") or "~/.runoff").expanduser().resolve()


def datasets_root() -> Path | None:
    """A torchvision root that is read first and never written, or None where ``RUNOFF_DATASETS`` is not set."""
    value = os.environ.get("RUNOFF_DATASETS")
    return Path(value).expanduser().resolve() if value else None


def id_paths(home: Path) -> tuple[Path, Path]:
    """The two files that hold the id of a home, so that one can replace the other."""
    return home / "home.json", home / ".home.json"


def home_id(home: Path) -> str:
    """The id of a home, which its runs carry. It is made at the first call; a copy that is lost or damaged is written again.

    Raises ``OSError`` if it can't be written.
    """
    paths = id_paths(home)
    known = [_read_id(path) for path in paths]
    found = next(filter(None, known), None)
    if found is None:
        home.mkdir(parents=True, exist_ok=True)
        found = secrets.token_hex(8)
        if not create_sealed(paths[0], {"id": found}):  # another process was faster, or the file is damaged
            found = _read_id(paths[0]) or found
            write_sealed(paths[0], {"id": found})
        known[0] = found
    for path, value in zip(paths, known, strict=True):
        if value != found:
            write_sealed(path, {"id": found})
    return found


def _read_id(path: Path) -> str | None:
    try:
        value = (read_sealed(path) or {}).get("id")
    except DamagedFile:
        return None
    return value if isinstance(value, str) and value else None
