"""The run folder, the truth about a run: names of its files, atomic writes, the event log and the lock of its process.

One writer a file (see docs/run-folder.md). Imports neither torch nor numpy, so that the server can read folders.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.config import SCHEMA_VERSION, RunConfig
from trainer.event_log import Chunk, EventLogChanged, EventWriter, iter_valid_events, read_events
from trainer.files import (
    DamagedFile,
    now,
    read_json,
    read_sealed,
    read_sealed_or_none,
    sha256,
    sync_folder,
    write_bytes,
    write_json,
    write_sealed,
)
from trainer.home import home_id, known_home_id
from trainer.i18n import _
from trainer.lock_holder import holder

__all__ = [
    "Chunk",
    "EventLogChanged",
    "EventWriter",
    "RunFolder",
    "is_id",
    "is_locked",
    "iter_valid_events",
    "new_id",
    "now",
    "read_events",
    "read_json",
    "sha256",
    "sync_folder",
    "write_bytes",
    "write_json",
]
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
ID_LENGTH = 10
_LONGEST_NAME = 200


def new_id() -> str:
    """A random id for a run or a sweep: 10 characters of Crockford's base 32 in lower case."""
    return "".join(secrets.choice(_ALPHABET) for _character in range(ID_LENGTH))


def is_id(text: str) -> bool:
    """Whether a text can be the name of a run folder: no path, and not longer than a file system takes."""
    return 0 < len(text) <= _LONGEST_NAME and not text.startswith(".") and "/" not in text and "\0" not in text


def is_locked(path: Path) -> bool:
    """Whether another process holds the POSIX lock on ``path``. Never for a file that this process has locked itself."""
    return holder(path) is not None


def _facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


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
            write_sealed(folder.config_path, {"schema": SCHEMA_VERSION, **config.model_dump()})
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
                "home": home_id(self.home),
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
    def home(self) -> Path:
        """The folder that holds ``runs``."""
        return self.path.parent.parent

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
    def heartbeat_path(self) -> Path:
        return self.path / "heartbeat"

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

    def is_empty(self) -> bool:
        """Whether the folder holds no run (yet): neither run.json nor events."""
        return not (self.path / "run.json").exists() and not self.events_path.exists()

    # what the server writes
    def read_run(self) -> dict[str, Any] | None:
        """The members of run.json; None if it is missing or damaged."""
        return read_sealed_or_none(self.path / "run.json")

    def is_imported(self) -> bool:
        """Whether the folder is a copy of a run of another home, or of another run: then nothing starts it automatically.

        Folders from before homes had an id belong to the home that they lie in.
        """
        record = self.read_run() or {}
        home = record.get("home")
        return record.get("id", self.id) != self.id or (home is not None and home != known_home_id(self.home))

    def write_run(self, run: dict[str, Any]) -> None:
        """Replace run.json. Raises ``OSError`` if it was not replaced, but not if only the sync of its folder failed."""
        try:
            write_sealed(self.path / "run.json", run)
        except OSError:
            if self.read_run() != run:
                raise

    def read_config(self) -> RunConfig:
        """The run's config. Raises ``ValueError`` if config.json is missing or not valid."""
        data = read_sealed(self.config_path)
        if data is None:
            raise DamagedFile(_("{name} is missing.").format(name="config.json"))
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
        """The members of environment.json; None if it is missing or damaged."""
        return read_sealed_or_none(self.path / "environment.json")

    def write_environment(self, environment: dict[str, Any]) -> None:
        write_sealed(self.path / "environment.json", environment)

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def write_manifest(self) -> None:
        """Write the size and the SHA-256 of every file that does not change any more, and of the log so far."""
        write_sealed(self.manifest_path, self.manifest_values(_facts(self.events_path)))

    def manifest_values(self, log: dict[str, Any]) -> dict[str, Any]:
        """The content of manifest.json for the files as they are; ``log`` has size and SHA-256 of the log before its end."""
        parents = (self.checkpoints, self.predictions, self.pictures)
        paths = [self.config_path, self.path / "environment.json"]
        paths += sorted(path for parent in parents for path in parent.glob("*") if not path.name.startswith("."))
        return {"files": {path.relative_to(self.path).as_posix(): _facts(path) for path in paths}, "log": log}

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
