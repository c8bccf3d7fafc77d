"""Simulates what is around a server: time, the disk, the trainer host and the processes of runs.

The server's parts are real. ``World.installed`` replaces the rest. Operations on files and on the database are numbered
while a server works, so that any of them can fail or be the last one before the server is killed.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, QueuePool, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.util import LRUCache

from app.runs import commands, indexer, queue, room, scheduler, starting, trash
from app.runs.executors import ExecutorUnavailable, RunNotStarted
from app.store import database
from tests.app import run_folders
from trainer import files, heartbeat, run_folder
from trainer.events import Cancelled, Failed, Finished
from trainer.run_folder import RunFolder, iter_valid_events

EPOCHS = 2  # of every run
SLOTS = 2
_TIMED: tuple[ModuleType, ...] = (commands, indexer, queue, scheduler, starting, trash, files, heartbeat, run_folder)
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "os.utime"}
_NEED_SPACE = {"open", "os.mkdir", "os.link", "sql", "commit"}
_TICK_OF_FILES = 0.005  # seconds, the resolution in which Linux gives times to files
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Killed(BaseException):
    """The server has been killed: it does nothing more."""


# Time ----------------------------------------------------------------------------------------------------------------


class Clock:
    """The real time plus the time that was skipped. The times of files are shifted in the same way."""

    def __init__(self) -> None:
        self._instants, self._passed = [0.0], [0.0]
        self._real_stat = Path.stat

    def time(self) -> float:
        return time.time() + self._passed[-1]

    def monotonic(self) -> float:
        return time.monotonic() + self._passed[-1]

    def sleep(self, seconds: float) -> None:
        self._passed[-1] += seconds

    def pass_over(self, seconds: float) -> None:
        """Let time pass. Files that are written from now on have a later time, whatever the kernel's resolution is."""
        self._instants.append(time.time())
        time.sleep(_TICK_OF_FILES)
        self._passed.append(self._passed[-1] + seconds)

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        real = self._real_stat(path, follow_symlinks=follow_symlinks)
        values = {name: getattr(real, name) for name in dir(real) if name.startswith("st_")}
        for name in ("st_mtime", "st_ctime"):
            shifted = values[name] + self._passed[bisect_right(self._instants, values[name]) - 1]
            values |= {name: shifted, f"{name}_ns": int(shifted * 1e9)}
        return SimpleNamespace(**values)  # type: ignore[return-value]

    def as_module(self) -> SimpleNamespace:
        return SimpleNamespace(time=self.time, monotonic=self.monotonic, sleep=self.sleep)


# Faults --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What happens at an operation of the server: ``kind`` is kill, ENOSPC or EIO; ``number`` counts from 0."""

    kind: str
    number: int


class Disk:
    """Fails operations below ``home`` while ``working``, and kills the server."""

    def __init__(self, home: Path) -> None:
        self._home = f"{home}/"
        self.is_full = False
        self._is_working = self._is_dead = False
        self._fault: Fault | None = None
        self._count = 0
        self.intruder: Callable[[], None] | None = None  # called when the server is about to take the write lock
        self.intrudes_at = 0

    @contextmanager
    def working(self, fault: Fault | None = None) -> Iterator[None]:
        """The server does something that may meet a fault. Operations after ``Killed`` are not carried out."""
        self._is_working, self._is_dead, self._fault, self._count = True, False, fault, 0
        try:
            yield
        finally:
            self._is_working, self.intruder = False, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Something other than the server is working."""
        before, self._is_working = self._is_working, False
        try:
            yield
        finally:
            self._is_working = before

    def audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_working:
            return
        is_change = name in _CHANGES or (name == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING)
        if is_change and (str(arguments[0]).startswith(self._home) or "/" not in str(arguments[0])):
            self._meet(name, lambda code: OSError(code, os.strerror(code), str(arguments[0])))

    def sql(self, name: str) -> None:
        if self._is_working:
            texts = {errno.ENOSPC: "database or disk is full", errno.EIO: "disk I/O error"}
            self._meet(name, lambda code: OperationalError(name, {}, sqlite3.OperationalError(texts[code])))

    def _meet(self, name: str, error: Callable[[int], Exception]) -> None:
        number, self._count = self._count, self._count + 1
        fault = self._fault if self._fault and self._fault.number == number else None
        if self._is_dead or (fault and fault.kind == "kill"):
            self._is_dead = True
            raise Killed
        if fault:
            raise error(getattr(errno, fault.kind))
        if self.is_full and name in _NEED_SPACE:
            raise error(errno.ENOSPC)

    def begin(self, mode: str | None) -> None:
        if self._is_working and mode and self.intruder is not None:
            self.intrudes_at -= 1
            if self.intrudes_at < 0:
                intruder, self.intruder = self.intruder, None
                with self.paused():
                    intruder()


_disks: list[Disk] = []
_statements: Any = LRUCache(500)


def _audit(name: str, arguments: tuple[Any, ...]) -> None:
    for disk in _disks:
        disk.audit(name, arguments)


def _is_write(statement: str) -> bool:
    return statement.split(" ", 1)[0] in ("INSERT", "UPDATE", "DELETE")


def _engine_with_known_statements(*arguments: Any, **options: Any) -> Engine:
    """An engine that keeps its connections and shares compiled statements with the engines of other servers."""
    engine = create_engine(*arguments, **{**options, "poolclass": QueuePool})
    engine._compiled_cache = _statements
    return engine


# Runs ----------------------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """The process of a run: it holds the lock, and writes into the folder."""

    folder: RunFolder
    attempt: int
    has_started: bool = False
    has_ended: bool = False  # has written its last event
    hangs: bool = False

    def beat(self) -> None:
        self.folder.heartbeat_path.write_text("1.000\n")

    def proceed(self, failure: str = "") -> None:
        """Start, train an epoch, or end."""
        epochs = [e["epoch"] for e, _end in iter_valid_events(self.folder.events_path) if e["type"] == "epoch"]
        last = max(epochs, default=0)
        self.beat()
        if failure:
            self._say(Failed(failure, "Something happened.", "Do something."), is_end=True)
        elif self.folder.stop_requested():
            self._say(Cancelled(last), is_end=True)
        elif not self.has_started:
            self._say(run_folders.started(last + 1, EPOCHS))
            self.has_started = True
        elif last < EPOCHS:
            self._say(run_folders.epoch(last + 1))
        else:
            self.folder.write_manifest()
            self._say(Finished(EPOCHS), is_end=True)

    def _say(self, what: Any, *, is_end: bool = False) -> None:
        run_folders.say(self.folder, [what], self.attempt)
        self.has_ended = is_end


@dataclass
class World:
    """The world outside a server, which outlives it. It is also the executor of each server, in place of a host."""

    home: Path
    clock: Clock = field(default_factory=Clock)
    alive: dict[str, Process] = field(default_factory=dict)
    has_host: bool = True
    next_start: str = "ok"  # what the executor does with the next run: ok, lost, refused, unavailable
    begun: list[str] = field(default_factory=list)  # the runs that processes were started for, since last asked

    def __post_init__(self) -> None:
        self.disk = Disk(self.home)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the clock, the locks of runs, the size of the disk and random ids; forget what syncs a disk."""
        numbers = iter(range(10**6))
        with pytest.MonkeyPatch.context() as patch:
            for module in _TIMED:
                patch.setattr(module, "time", self.clock.as_module(), raising=False)
            patch.setattr(Path, "stat", lambda path, **options: self.clock.stat(path, **options))
            patch.setattr(RunFolder, "is_alive", lambda folder: folder.id in self.alive)
            patch.setattr(os, "fsync", lambda _descriptor: None)
            for module in (run_folder, commands):
                patch.setattr(module, "new_id", lambda: f"{next(numbers):010d}")
            usage = SimpleNamespace(disk_usage=lambda _home: SimpleNamespace(free=0 if self.disk.is_full else 10**12))
            patch.setattr(room, "shutil", usage)
            patch.setattr(database, "create_engine", _engine_with_known_statements)
            _disks.append(self.disk)
            try:
                yield
            finally:
                _disks.remove(self.disk)

    # what the scheduler asks of an executor
    def ensure_host(self) -> None:
        self.has_host = True

    def ready(self) -> bool:
        return self.has_host

    def known_devices(self) -> list[dict[str, Any]]:
        return [{"name": "cpu"}]

    devices = known_devices

    def start(self, folder: RunFolder, attempt: int, num_threads: int, device: str | None = None) -> None:
        """A process holds the lock when this returns, unless the host is in no state for it."""
        how, self.next_start = self.next_start, "ok"
        if how == "unavailable":
            raise ExecutorUnavailable("The trainer is starting.")
        self.begun.append(folder.id)
        if how == "refused":
            raise RunNotStarted("The process of the run ended.")
        assert folder.id not in self.alive, "two processes would train one run"
        assert folder.path.is_dir(), "a process was started for a run that is gone"
        process = self.alive[folder.id] = Process(folder, attempt)
        with self.disk.paused():
            process.beat()
        if how == "lost":
            raise ExecutorUnavailable("The connection to the trainer was lost.")

    def force_stop(self, folder: RunFolder, attempt: int) -> bool:
        with self.disk.paused():
            self.end(folder.id, signal.SIGKILL)
        return True

    def close(self) -> None:
        """Runs continue."""

    # what happens to processes
    def end(self, run_id: str, status: int = 0) -> None:
        """End the process. The host, if there is one, notes how it ended."""
        process = self.alive.pop(run_id, None)
        if process is not None and self.has_host and not self.disk.is_full and process.folder.path.exists():
            process.folder.write_exit(process.attempt, status)

    def pass_over(self, seconds: float) -> None:
        """Let time pass. Processes that do not hang give signs of life."""
        self.clock.pass_over(seconds)
        for process in self.alive.values():
            if not process.hangs:
                process.beat()


@pytest.fixture(scope="module")
def watched_engines() -> Iterator[None]:
    """Number the writes of all databases, as the operations on files are."""
    if not getattr(sys, "_runoff_audited", False):  # an audit hook can't be removed
        sys.addaudithook(_audit)
        sys._runoff_audited = True  # type: ignore[attr-defined]

    def commit(_connection: object) -> None:
        for disk in _disks:
            disk.sql("commit")

    def execute(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if _is_write(statement):
            for disk in _disks:
                disk.sql("sql")

    def begin(connection: Any) -> None:
        for disk in _disks:
            disk.begin(connection.get_execution_options().get("begin"))

    listeners: dict[str, Callable[..., None]] = {"commit": commit, "before_cursor_execute": execute, "begin": begin}
    for name, listener in listeners.items():
        event.listen(Engine, name, listener)
    yield
    for name, listener in listeners.items():
        event.remove(Engine, name, listener)
