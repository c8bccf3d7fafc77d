"""Files that survive a crash: atomic writes, and JSON with a checksum. Imports neither torch nor numpy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.i18n import _


def is_full(error: BaseException | None) -> bool:
    """Whether an error means that the disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds and Z."""
    return to_iso(time.time())


def to_iso(seconds: float) -> str:
    """A time in seconds since 1970 as ISO 8601 in UTC with milliseconds and Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sync_folder(path: Path) -> None:
    """Make a rename or a new name in ``path`` survive a loss of power."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` atomically: temporary name in the same folder, flush, fsync, rename, fsync the folder."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    write_bytes(path, _json_bytes(value))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is no such file or no valid object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


Stamp = tuple[int, int, int, int, int]  # device, inode, bytes, times of change in nanoseconds: of content, of the file


def stamp_of(path: Path) -> Stamp:
    """Identity, size and times of a file: another stamp may mean another content. Raises ``OSError``."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# JSON with a checksum -------------------------------------------------------------------------------------------------


class DamagedFile(ValueError):
    """A file does not hold what was written to it; the text is a sentence for people."""


def checksum(data: bytes) -> str:
    """CRC-32 as 8 hex digits."""
    return f"{zlib.crc32(data):08x}"


def sealed_bytes(values: dict[str, Any]) -> bytes:
    """A JSON file whose last member ``crc`` is the checksum of all others."""
    members = {name: value for name, value in values.items() if name != "crc"}
    return _json_bytes({**members, "crc": _crc(members)})


def write_sealed(path: Path, values: dict[str, Any]) -> None:
    """Replace a JSON file atomically. Its last member ``crc`` is the checksum of all others."""
    write_bytes(path, sealed_bytes(values))


def create_sealed(path: Path, values: dict[str, Any]) -> bool:
    """Write a JSON file with a checksum if there is none; False where there is one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        write_sealed(temporary, values)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            temporary.rename(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The members of a JSON file without ``crc``; None if there is no such file.

    Files from before checksums have no ``crc``. Raises ``DamagedFile`` if the file is no JSON object or fails its checksum,
    and ``OSError`` for what may pass, such as too many open files.
    """
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EIO, errno.EISDIR):
            raise
        raise DamagedFile(_("{name} can't be read.").format(name=path.name)) from None
    if not isinstance(values, dict):
        raise DamagedFile(_("{name} can't be read.").format(name=path.name))
    crc = values.pop("crc", None)
    if crc is not None and crc != _crc(values):
        raise DamagedFile(_("{name} does not match its checksum.").format(name=path.name))
    return values


def read_sealed_or_none(path: Path) -> dict[str, Any] | None:
    """As ``read_sealed``; None also for a damaged file."""
    try:
        return read_sealed(path)
    except DamagedFile:
        return None


def _crc(members: dict[str, Any]) -> str:
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return checksum(canonical.encode())
