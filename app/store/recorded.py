"""Whether a file of a run is the one that its log tells of: the SHA-256 in the lines of its epochs, and that of the file.

Both are remembered for as long as log and file stay as they are. Logs of older versions tell no hash of some files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer.event_log import parse_line
from trainer.files import Stamp, stamp_of
from trainer.run_folder import RunFolder

_FILES = b'"files"'
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header


@dataclass(frozen=True)
class FileVersion:
    """A file as it is at one time: another stamp means another content."""

    path: Path
    stamp: Stamp


def version_of(path: Path) -> FileVersion:
    """The present version of a file. Raises ``OSError``."""
    return FileVersion(path, stamp_of(path))


def is_as_recorded(folder: RunFolder, file: FileVersion) -> bool:
    """Whether the file has the hash in the log of its run; also where the log tells none. Raises ``OSError``."""
    try:
        log = version_of(folder.events_path)
    except FileNotFoundError:
        return True
    recorded = _hashes(log).get(file.path.relative_to(folder.path).as_posix())
    return recorded is None or recorded in _accepted(file)


def recorded_hashes(folder: RunFolder) -> Mapping[str, str]:
    """Path within the folder -> SHA-256, as the log of the run says."""
    try:
        return _hashes(version_of(folder.events_path))
    except OSError:
        return {}


@lru_cache(maxsize=64)
def _hashes(log: FileVersion) -> Mapping[str, str]:
    """Path within the folder -> SHA-256, by the latest line that names the path.

    Only lines of epochs are parsed: most lines of a log are steps, and a live log changes all the time.
    """
    hashes: dict[str, str] = {}
    for line in log.path.read_bytes().split(b"\n")[:-1]:
        event = parse_line(line + b"\n") if _FILES in line else None
        files: Any = event.get("files") if event else None
        if isinstance(files, dict):
            hashes.update((key, value) for key, value in files.items() if isinstance(value, str))
    return hashes


@lru_cache(maxsize=1 << 16)
def _accepted(file: FileVersion) -> frozenset[str]:
    """The hashes that the file may be recorded under: its own, and of a reduced file also that of its original.

    A reduced file counts only if its content has the hash that it was reduced to.
    """
    data = file.path.read_bytes()
    own = hashlib.sha256(data).hexdigest()
    header_length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if file.path.suffix != ".safetensors" or header_length > len(data):
        return frozenset({own})
    try:
        metadata = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + header_length])["__metadata__"]
        original, content = metadata["thinned_from"], metadata.get("content")
    except (ValueError, LookupError, TypeError, AttributeError):
        return frozenset({own})
    arrays = hashlib.sha256(data[_LENGTH_BYTES + header_length :]).hexdigest()
    return frozenset({own, original}) if content in (None, arrays) else frozenset({own})
