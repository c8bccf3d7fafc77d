"""The run folder, the truth about a run: names of its files, atomic writes, the event log and the lock of its process.

One writer a file (see docs/run-folder.md). Imports neither torch nor numpy, so that the server can read folders.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from trainer.config import SCHEMA_VERSION, RunConfig
from trainer.events import Event, payload

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
ID_LENGTH = 10


def new_id() -> str:
    """A random id for a run or a sweep: 10 characters of Crockford's base 32 in lower case."""
    return "".join(secrets.choice(_ALPHABET) for _character in range(ID_LENGTH))


def now() -> str:
    """The time in UTC, ISO 8601 with milliseconds and Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in ``path``, or None where there is no such file or no valid object in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_locked(path: Path) -> bool:
    """Whether another process holds the POSIX lock on ``path``. Never for a file that this process has locked itself."""
    try:
        with path.open("rb+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
    except FileNotFoundError:
        pass
    return False


@dataclass(frozen=True)
class RunFolder:
    """``runs/<id>/``. Paths are methods of it, so that names stand here only."""

    path: Path

    @classmethod
    def claim(cls, runs: Path, config: RunConfig) -> RunFolder:
        """Claim a new random id by mkdir below ``runs`` and write config.json. It is no run before ``announce``."""
        runs.mkdir(parents=True, exist_ok=True)
        while True:
            folder = cls(runs / new_id())
            try:
                folder.path.mkdir()
            except FileExistsError:
                continue
            break
        try:
            write_json(folder.config_path, {"schema": SCHEMA_VERSION, **config.model_dump()})
            sync_folder(runs)
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            raise
        return folder

    def announce(self, **run: Any) -> None:
        """Write run.json, which makes the folder a run that a server may find and start."""
        self.write_run(
            {
                "id": self.id,
                "name": "",
                "tags": [],
                "notes": "",
                "archived": False,
                "sweep": None,
                "warnings": [],
                "created_at": now(),
                "status": "queued",
                "after_attempt": 0,
                **run,
            }
        )

    @classmethod
    def create(cls, runs: Path, config: RunConfig, **run: Any) -> RunFolder:
        """Claim a folder and announce it at once."""
        folder = cls.claim(runs, config)
        folder.announce(**run)
        return folder

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    @property
    def stop_path(self) -> Path:
        return self.path / "stop"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    def checkpoint_path(self, epoch: int) -> Path:
        return self.checkpoints / f"epoch-{epoch:04d}.safetensors"

    def predictions_path(self, epoch: int) -> Path:
        return self.predictions / f"epoch-{epoch:04d}.safetensors"

    @property
    def labels_path(self) -> Path:
        return self.predictions / "labels.npy"

    # what the server writes
    def read_run(self) -> dict[str, Any] | None:
        return read_json(self.path / "run.json")

    def write_run(self, run: dict[str, Any]) -> None:
        write_json(self.path / "run.json", run)

    def read_config(self) -> RunConfig:
        """The run's config. Raises ``OSError`` or ``ValueError`` where config.json is missing or not valid."""
        data = json.loads(self.config_path.read_text(encoding="utf-8"))
        data.pop("schema", None)
        return RunConfig.model_validate(data)

    def request_stop(self) -> None:
        self.stop_path.touch()

    def clear_stop(self) -> None:
        self.stop_path.unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        return self.stop_path.exists()

    # what the run's process writes
    def read_environment(self) -> dict[str, Any] | None:
        return read_json(self.path / "environment.json")

    def write_environment(self, environment: dict[str, Any]) -> None:
        write_json(self.path / "environment.json", environment)

    def acquire_lock(self, patience_seconds: float = 2.0) -> IO[bytes] | None:
        """Take the run's lock for the life of this process; None where another process holds it.

        Keep the returned file open, and never open ``lock`` again in this process: closing any descriptor of the file
        would release a POSIX lock. A prober may hold it for an instant, hence the patience.
        """
        file = self.lock_path.open("ab")
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except OSError:
                if time.monotonic() >= deadline:
                    file.close()
                    return None
                time.sleep(0.01)

    def is_alive(self) -> bool:
        """Whether a process holds the run's lock. Not for the run's own process."""
        return is_locked(self.lock_path)

    # what the host writes
    def exit_path(self, attempt: int) -> Path:
        return self.path / f"exit-{attempt}.json"

    def write_exit(self, attempt: int, wait_status: int) -> None:
        """Note how attempt's process ended; ``wait_status`` as ``os.waitpid`` gives it."""
        code = os.waitstatus_to_exitcode(wait_status)
        write_json(
            self.exit_path(attempt), {"code": max(code, 0), "signal": -code if code < 0 else None, "time": now()}
        )

    def read_exit(self, attempt: int) -> dict[str, Any] | None:
        return read_json(self.exit_path(attempt))


@dataclass(frozen=True)
class Chunk:
    """Complete lines read from an event log, and where to go on."""

    events: list[dict[str, Any]]
    offset: int  # bytes, after the last newline


class EventLogChanged(Exception):
    """The file is shorter than the offset, or a seq is missing: read again from the start."""


def read_events(path: Path, offset: int = 0, seq: int = 0) -> Chunk:
    """The events after byte ``offset``, whose last read event had ``seq``; stops at the last newline.

    Raises ``EventLogChanged`` where the file can't be a continuation of what was read.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        size = 0
    if size < offset:
        raise EventLogChanged
    if size == offset:
        return Chunk([], offset)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read()
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].splitlines():
        try:
            event = json.loads(line)
            valid = event["seq"] == seq + 1
        except (ValueError, TypeError, KeyError):
            valid = False
        if not valid:
            raise EventLogChanged
        seq += 1
        events.append(event)
    return Chunk(events, offset + end)


def iter_valid_events(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each event with the byte offset behind it, up to the first line that is torn or out of order."""
    offset, seq = 0, 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                event = json.loads(line)
                if not line.endswith(b"\n") or event["seq"] != seq + 1:
                    return
            except (ValueError, TypeError, KeyError):
                return
            offset += len(line)
            seq += 1
            yield event, offset


class EventWriter:
    """Appends one attempt's events to ``events.jsonl``; cuts off a torn last line first."""

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        self.attempt = attempt
        last, end = {"seq": 0}, 0
        for last, end in iter_valid_events(folder.events_path):  # noqa: B007  (both are wanted after the loop)
            pass
        self.seq: int = last["seq"]
        self._file = folder.events_path.open("ab")
        self._file.truncate(end)

    def write(self, event: Event, **extra: Any) -> dict[str, Any]:
        """Append the event with seq, time and attempt; epochs and ends are on the disk when this returns."""
        self.seq += 1
        line = {"seq": self.seq, "time": now(), "attempt": self.attempt, **payload(event), **extra}
        self._file.write((json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n").encode())
        self._file.flush()
        if event.type not in ("step", "progress"):
            os.fsync(self._file.fileno())
        return line

    def close(self) -> None:
        self._file.close()
