"""Where things lie on disk, from the environment: ``RUNOFF_HOME`` and ``RUNOFF_DATASETS``; and which home it is."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from contextlib import suppress
from pathlib import Path

from trainer.files import create_sealed, read_sealed_or_none, write_sealed


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


def known_home_id(home: Path) -> str | None:
    """The id of a home that has one; nothing is written."""
    return next(filter(None, map(_read_id, id_paths(home))), None)


def home_id(home: Path) -> str:
    """The id of a home, which its runs carry. It is made at the first call; a copy that is lost or damaged is written again.

    If both copies are damaged, it is the id that most runs carry. Raises ``OSError`` if it can't be written.
    """
    paths = id_paths(home)
    known = [_read_id(path) for path in paths]
    found = next(filter(None, known), None)
    if found is None:
        home.mkdir(parents=True, exist_ok=True)
        is_damaged = any(path.exists() for path in paths)
        found = (_id_of_most_runs(home) if is_damaged else None) or secrets.token_hex(8)
        if not create_sealed(paths[0], {"id": found}):  # another process was faster, or the file is damaged
            found = _read_id(paths[0]) or found
            write_sealed(paths[0], {"id": found})
        known[0] = found
    for path, value in zip(paths, known, strict=True):
        if value != found:
            write_sealed(path, {"id": found})
    return found


def _id_of_most_runs(home: Path) -> str | None:
    ids: Counter[str] = Counter()
    for path in (home / "runs").glob("[!.]*/run.json"):
        with suppress(OSError):
            ids[str((read_sealed_or_none(path) or {}).get("home") or "")] += 1
    del ids[""]
    return ids.most_common(1)[0][0] if ids else None


def _read_id(path: Path) -> str | None:
    value = (read_sealed_or_none(path) or {}).get("id")
    return value if isinstance(value, str) and value else None
