"""Starts and ends a server on its home: the lock, the leftovers of a killed server, and the server's parts."""

from __future__ import annotations

import fcntl
import gc
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, NamedTuple

from sqlalchemy import Engine

from app.datasets import Imports
from app.runs import starting
from app.runs.checking import Checks
from app.runs.executors import ExecutorUnavailable
from app.runs.executors.local import LocalExecutor
from app.runs.indexer import Indexer
from app.runs.measuring import Measuring
from app.runs.presence import Presence
from app.runs.reader import Reader
from app.runs.scheduler import Scheduler
from app.runs.tidying import tidy
from app.settings import Settings
from app.state import Runoff
from app.store.database import last_write, open_index
from trainer.files import is_full
from trainer.home import home_id
from trainer.i18n import _
from trainer.run_folder import write_json

logger = logging.getLogger(__name__)
_UNFINISHED_SECONDS = 600.0  # a temporary file that is older than this will not be completed


class AlreadyRunning(RuntimeError):
    """Another server uses this home."""


def lock_home(settings: Settings) -> IO[bytes]:
    """Take the home for this server; closing the returned file frees it. Raises ``AlreadyRunning``."""
    settings.home.mkdir(parents=True, exist_ok=True)
    file = (settings.home / "server.lock").open("ab")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        message = _("A Runoff server is already running on {home}. Use it, or set RUNOFF_HOME to another folder.")
        raise AlreadyRunning(message.format(home=settings.home)) from None
    return file


class Prepared(NamedTuple):
    """A home in order: its open index, a sentence if that is a new one, and when an earlier server wrote it."""

    engine: Engine
    told: str
    written_at: float


def prepare(settings: Settings) -> Prepared:
    """Bring a locked home in order. What a killed server left unfinished is completed or removed.

    Raises ``IndexUnusable`` and ``OSError``.
    """
    _remove_leftovers(settings)
    home_id(settings.home)
    return _open(settings)


def _open(settings: Settings) -> Prepared:
    written_at = last_write(settings.database)  # before it is opened, which writes to it
    return Prepared(*open_index(settings.database), written_at)


def make_state(settings: Settings, prepared: Prepared | None = None) -> Runoff:
    """The parts of a server on its home, with the database up to date. Nothing runs yet. Raises ``IndexUnusable``."""
    engine, told, written_at = prepared or _open(settings)
    if told:
        logger.warning(told)
    presence = Presence.of(settings.home)
    reader = Reader(settings.database, settings.runs)
    indexer = Indexer(engine, settings.runs, presence.problem, reader=reader, written_at=written_at)
    executor = LocalExecutor(settings.home, home_problem=presence.problem)
    measuring = Measuring(engine, settings.home, executor) if settings.measure else None
    return Runoff(
        settings=settings,
        engine=engine,
        presence=presence,
        executor=executor,
        indexer=indexer,
        imports=Imports(settings.home, settings.reserve),
        checks=Checks(settings, engine),
        scheduler=Scheduler(
            engine,
            settings.runs,
            indexer,
            executor,
            settings.slots,
            measuring,
            settings.hang_seconds,
            settings.reserve,
            presence.problem,
        ),
    )


@contextmanager
def serving(
    settings: Settings, *, train: bool, lock: IO[bytes] | None = None, prepared: Prepared | None = None
) -> Iterator[Runoff]:
    """Start the parts of a server, and end them afterwards. Without ``train`` no run is scheduled.

    ``lock`` and ``prepared`` are what ``lock_home`` and ``prepare`` returned, if the caller has called them already.
    Raises what they raise.
    """
    with lock or lock_home(settings):
        state = make_state(settings, prepared or prepare(settings))
        address = settings.home / "server.json"
        with suppress(OSError):  # on a full disk commands don't find the server, but pages work
            write_json(address, {"url": f"http://{_reachable_host(settings.host)}:{settings.port}"})
        state.imports.resume()
        if train:
            with suppress(ExecutorUnavailable):  # the scheduler tries again, and the queue says why it waits
                state.executor.ensure_host()
            state.scheduler.begin()
        try:
            yield state
        finally:
            state.indexer.end()
            state.scheduler.end()
            state.imports.end()
            state.checks.end()
            state.executor.close()
            state.engine.dispose()
            with suppress(OSError):  # the home may be gone
                address.unlink(missing_ok=True)


def settle_memory() -> None:
    """Exempt what exists at the start from garbage collection: scanning all of it delays a page by 0.1 s."""
    gc.collect()
    gc.freeze()


def _remove_leftovers(settings: Settings) -> None:
    """Complete or remove what a killed server left unfinished: sweeps, deletions and temporary files."""
    settings.runs.mkdir(parents=True, exist_ok=True)
    for path in settings.runs.glob(".deleted-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in [*settings.home.glob(".*.tmp"), *settings.home.glob(".*.new")]:  # but not one that is being written now
        if time.time() - path.stat().st_mtime > _UNFINISHED_SECONDS:
            path.unlink(missing_ok=True)
    try:
        starting.complete(settings.home)
    except OSError as error:
        if not is_full(error):
            raise
        logger.warning("The disk is full: a sweep that was interrupted is completed when there is space.")
    tidy(settings.home)


def _reachable_host(host: str) -> str:
    """The host name by which this machine reaches the server."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
