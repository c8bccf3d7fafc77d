"""A copy of the home that can be made while the server works and runs train. ``app.store.restore`` is the way back.

The index is copied first and the folders after it. So the copied index can only be behind the copied folders, which is
what a server expects when it starts. Of a run, the log and the names of its files are taken at one moment. The listing
``backup.json`` is written last, so a backup without it is incomplete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from pydantic import BaseModel, Field, field_validator

from app.settings import Settings
from app.store.run_snapshot import take_snapshot
from trainer.i18n import _
from trainer.run_folder import RunFolder, now, read_json, write_bytes

LISTING = "backup.json"
_BLOCK_BYTES = 1 << 20
_CLOCK_SECONDS = 5.0  # how far the time of a file may be off the time of this process
_OF_THIS_SERVER = {LISTING, "server.json", "server.lock", "uploads"}
_KEPT_DESPITE_DOT = {".removed", ".home.json"}  # names of data sets that must not be used again; the home's id


class BackupError(RuntimeError):
    """A backup can't be made or restored. The message is one sentence for a person."""


class BackupFile(BaseModel):
    """A file of a backup."""

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    mode: int = Field(ge=0, le=0o777)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path:
            raise ValueError("not a path within the backup")
        return path


class Listing(BaseModel):
    """``backup.json``: every file of a backup."""

    format: Literal[1] = 1
    version: str
    home: str
    created_at: str
    left_out: list[str]  # data sets, and ``downloads``
    files: list[BackupFile]


@dataclass
class Part:
    """What a backup holds of one kind."""

    num_files: int = 0
    num_bytes: int = 0


@dataclass
class Backup:
    """What a backup holds, by the first part of its paths, and how many bytes were left out."""

    num_runs: int
    parts: dict[str, Part]
    left_out: dict[str, int]  # name -> bytes
    has_index: bool


def make_backup(settings: Settings, target: Path, *, leave_out_caches: bool = False) -> Backup:
    """Copy the home to the new or empty folder ``target``. Raises ``BackupError``, or ``OSError`` (a full disk, say)."""
    target = target.expanduser().resolve()
    _check_target(settings.home, target)
    left_out = _remakeable(settings.home) if leave_out_caches else {}
    _check_space(settings.home, target, left_out)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    copier = _Copier(settings.home, target)
    copied_from = time.time()
    has_index = _copy_index(settings.database, target / settings.database.name)
    changed = copier.copy_runs(settings.runs, copied_from - _CLOCK_SECONDS)
    index_files = {settings.database.name + end for end in ("", "-journal", "-wal", "-shm")}
    copier.copy_tree(settings.home, _OF_THIS_SERVER | index_files | {settings.runs.name, *left_out})
    if has_index:
        has_index = _forget_runs(target / settings.database.name, changed)
    if has_index:
        copier.add_existing(settings.database.name)
    os.sync()
    listing = Listing(
        version=version("runoff"),
        home=str(settings.home),
        created_at=now(),
        left_out=sorted(left_out),
        files=sorted(copier.files.values(), key=lambda file: file.path),
    )
    write_bytes(target / LISTING, listing.model_dump_json(indent=1).encode() + b"\n")
    return Backup(copier.num_runs, _parts(listing.files), left_out, has_index)


def _check_target(home: Path, target: Path) -> None:
    if not home.is_dir():
        raise BackupError(_("There is nothing to back up: {home} does not exist.").format(home=home))
    if target == home or home in target.parents:
        raise BackupError(_("{path} is inside {home}. Choose a folder elsewhere.").format(path=target, home=home))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackupError(_("{path} is not an empty folder. Choose a new one.").format(path=target))


def _check_space(home: Path, target: Path, left_out: dict[str, int]) -> None:
    parent = next(folder for folder in [target, *target.parents] if folder.exists())
    wanted, free = _size(home) - sum(left_out.values()), shutil.disk_usage(parent).free
    if wanted > free:
        message = _("The backup needs {wanted} MB, but only {free} MB are free in {path}.")
        raise BackupError(message.format(wanted=f"{wanted / 1e6:,.0f}", free=f"{free / 1e6:,.0f}", path=parent))


def _remakeable(home: Path) -> dict[str, int]:
    """What a run downloads or makes again when it needs it: originals, and caches of known data sets, with their bytes."""
    folders = [home / "downloads"]
    for meta in sorted((home / "datasets").glob("*/meta.json")):
        if (read_json(meta) or {}).get("kind") in ("torchvision", "built in"):
            folders.append(meta.parent)
    return {folder.relative_to(home).as_posix(): _size(folder) for folder in folders if folder.is_dir()}


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; files that go away meanwhile count as nothing."""
    size = 0
    for parent, _folders, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size


def _parts(files: list[BackupFile]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for file in files:
        first, _slash, rest = file.path.partition("/")
        part = parts.setdefault(first if rest else "", Part())
        part.num_files += 1
        part.num_bytes += file.size
    return parts


# Files ---------------------------------------------------------------------------------------------------------------


def copy_file(source: IO[bytes], target: Path, size: int) -> tuple[int, str]:
    """Copy at most ``size`` bytes to a new file. Returns how many there were, and their SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), size
    with target.open("xb") as file:
        while left and (block := source.read(min(left, _BLOCK_BYTES))):
            file.write(block)
            digest.update(block)
            left -= len(block)
    return size - left, digest.hexdigest()


@dataclass
class _Copier:
    """Copies files from ``home`` to ``target`` and keeps the listing."""

    home: Path
    target: Path
    files: dict[str, BackupFile] = field(default_factory=dict)
    num_runs: int = 0

    def add(self, source: IO[bytes], path: str, status: os.stat_result) -> None:
        """Copy an open file. What is appended meanwhile is not part of the copy."""
        target = self.target / path
        size, sha256 = copy_file(source, target, status.st_size)
        mode = stat.S_IMODE(status.st_mode) & 0o777
        target.chmod(mode)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        self.files[path] = BackupFile(path=path, size=size, sha256=sha256, mode=mode)

    def add_existing(self, path: str) -> None:
        """List a file that is in the backup already."""
        with (self.target / path).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            status = os.fstat(file.fileno())
        mode = stat.S_IMODE(status.st_mode) & 0o777
        self.files[path] = BackupFile(path=path, size=status.st_size, sha256=sha256, mode=mode)

    def copy_tree(self, folder: Path, skip: set[str], wanted: Callable[[Path], bool] = lambda _path: True) -> None:
        """Copy the files below a folder but those in ``skip`` (paths in the home). A file that goes away is left out."""
        for path in _files_below(folder, self.home, skip):
            if wanted(path):
                with suppress(FileNotFoundError), path.open("rb") as file:
                    self.add(file, path.relative_to(self.home).as_posix(), os.fstat(file.fileno()))

    def copy_runs(self, runs: Path, since: float) -> set[str]:
        """Copy all run folders. Returns the ids of those whose run.json changed after ``since``, or that are gone."""
        changed = set()
        for path in sorted(runs.iterdir()) if runs.is_dir() else []:
            if path.name.startswith(".") or not path.is_dir():
                continue
            if not self._copy_run(RunFolder(path)) or _changed_at(path / "run.json") > since:
                changed.add(path.name)
        return changed

    def _copy_run(self, folder: RunFolder) -> bool:
        """Copy a run folder; False where it is deleted meanwhile, and then nothing of it stays in the backup."""
        prefix = folder.path.relative_to(self.home).as_posix()
        with ExitStack() as stack:
            snapshot = take_snapshot(folder, stack)
            if snapshot is not None:
                for name, (file, status) in snapshot.opened.items():
                    self.add(file, f"{prefix}/{name}", status)
                taken = {f"{prefix}/{name}" for name in ("checkpoints", "events.jsonl", "lock", "stop")}
                self.copy_tree(folder.path, taken, snapshot.lacks)
        if snapshot is None or not folder.path.exists():
            shutil.rmtree(self.target / prefix, ignore_errors=True)
            self.files = {path: file for path, file in self.files.items() if not path.startswith(f"{prefix}/")}
            return False
        self.num_runs += 1
        return True


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


def _files_below(folder: Path, home: Path, skip: set[str]) -> Iterator[Path]:
    """The regular files below a folder, in order; no locks, sockets, temporary files, nor what is being deleted."""
    try:
        entries = sorted(folder.iterdir())
    except FileNotFoundError:
        return
    for path in entries:
        name = path.name
        hidden = name.startswith(".") and name not in _KEPT_DESPITE_DOT
        if hidden or name.endswith(".lock") or path.relative_to(home).as_posix() in skip:
            continue
        if path.is_dir():
            yield from _files_below(path, home, skip)
        elif path.is_file():
            yield path


# The index -----------------------------------------------------------------------------------------------------------


def _copy_index(source: Path, target: Path) -> bool:
    """Copy the index as it is between two changes; False where there is none that can be read."""
    if not source.is_file():
        return False
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=30)) as index,
            closing(sqlite3.connect(target)) as copy,
        ):
            index.backup(copy)
    except sqlite3.DatabaseError:
        target.unlink(missing_ok=True)
        return False
    return True


def _forget_runs(index: Path, run_ids: set[str]) -> bool:
    """Remove rows that may be older than their run folders: a server makes them again from the folders."""
    try:
        with closing(sqlite3.connect(index)) as connection, connection:
            for run_id in sorted(run_ids):
                connection.execute("DELETE FROM epoch WHERE run_id = ?", (run_id,))
                connection.execute("DELETE FROM run WHERE id = ?", (run_id,))
    except sqlite3.DatabaseError:
        index.unlink(missing_ok=True)
        return False
    return True
