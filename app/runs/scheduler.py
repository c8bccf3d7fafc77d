"""Hands queued runs to the executor while slots are free, and notices runs whose process is gone."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import col, select

from app.runs import commands as runs
from app.runs.executors import Executor, ExecutorUnavailable, RunNotStarted
from app.runs.precision import Measuring
from app.store.database import reading, writing
from app.store.indexer import Indexer
from app.store.tables import Run
from trainer.cores import num_cores, threads_for
from trainer.events import TERMINAL
from trainer.run_folder import RunFolder, iter_valid_events

logger = logging.getLogger(__name__)
_BUSY_SECONDS, _IDLE_SECONDS = 0.2, 1.0


class Scheduler:
    """One thread that indexes, starts and watches. ``tick`` is its whole work, for tests to turn by hand."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        indexer: Indexer,
        executor: Executor,
        slots: int | None = None,
        measuring: Measuring | None = None,
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.indexer = indexer
        self.executor = executor
        self._slots = slots
        self._measuring = measuring
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._waits_for = ""

    # the thread
    def begin(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop the thread; runs go on."""
        if self._measuring:
            self._measuring.end()
        self._stop.set()
        self._wake.set()
        if self._thread:
            self._thread.join(timeout=10)

    def wake(self) -> None:
        """Look at the queue now, not at the next tick."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            busy = self._guarded(self.tick)
            self._wake.wait(_BUSY_SECONDS if busy else _IDLE_SECONDS)
            self._wake.clear()

    def _guarded(self, work: Callable[[], bool]) -> bool:
        """A failed tick (a full disk, say) is logged and tried again; the thread never dies of it."""
        try:
            return work()
        except Exception:
            logger.exception("The scheduler will try again.")
            return True

    # its work
    def tick(self) -> bool:
        """Index, watch, start; measure when idle. True while any run is queued or running."""
        self.indexer.tick()
        with reading(self.engine) as session:
            running = session.exec(select(Run).where(Run.status == "running")).all()
            order = (col(Run.queued_at), col(Run.created_at), col(Run.seed), col(Run.id))
            queued = session.exec(select(Run).where(Run.status == "queued").order_by(*order)).all()
        for run in running:
            with self._one_run(run.id):
                if not self._folder(run).is_alive():
                    self._handle_vanished(run.id)
        self._start_queued(list(queued))
        if self._measuring:
            self._measuring.tick(busy=bool(running or queued))
        return bool(running or queued)

    @contextmanager
    def _one_run(self, run_id: str) -> Iterator[None]:
        """What goes wrong with one run (its folder was removed by hand, say) must not keep the others waiting."""
        try:
            yield
        except OSError:
            logger.exception("Run %s could not be looked after; it is tried again.", run_id)

    def _folder(self, run: Run) -> RunFolder:
        return RunFolder(self.folder / run.id)

    def _handle_vanished(self, run_id: str) -> None:
        """The lock is free: read the last events, and if none of them ended the run, its process vanished."""
        with writing(self.engine) as session:
            run = self.indexer.read(session, run_id)
            if run is not None and run.status == "running":
                logger.warning("The process of run %s is gone.", run_id)
                runs.mark_vanished(session, self._folder(run), run)
            session.commit()

    def _start_queued(self, queued: list[Run]) -> None:
        try:
            if queued:
                self.executor.ensure_host()
            devices = (self.executor.known_devices() or self.executor.devices()) if self.executor.ready() else None
        except ExecutorUnavailable as error:
            if str(error) != self._waits_for:  # once a reason, not once a tick
                self._waits_for = str(error)
                logger.warning("The queue waits: %s", error)
            return
        self._waits_for = ""
        if devices is None or not queued:
            return
        accelerators = [str(device["name"]) for device in devices if device["name"] != "cpu"]
        with reading(self.engine) as session:
            running = list(session.exec(select(Run).where(Run.status == "running")).all())
        for run in queued:
            device = self._free_device(run, running, accelerators)
            if device is None or not self._start(run.id, device):
                return  # first come, first served: nobody overtakes the run that waits
            run.device = device
            running.append(run)

    def _free_device(self, run: Run, running: list[Run], accelerators: list[str]) -> str | None:
        """Where the run goes now, or None while it must wait.

        One run per accelerator; on the CPU one per core, a run counting as many as the threads that suit its net. A
        number of slots that the operator chose replaces both rules.
        """
        load = Counter(other.device or "cpu" for other in running)
        candidates = _candidates(run.config["device"], accelerators)
        if self._slots is not None:
            return min(candidates, key=lambda name: load[name]) if len(running) < self._slots else None
        for name in candidates:
            if name != "cpu" and not load[name]:
                return name
            if name == "cpu":
                used = sum(threads_for(other.model) for other in running if (other.device or "cpu") == "cpu")
                if not used or used + threads_for(run.model) <= num_cores():
                    return name
        return None

    def _start(self, run_id: str, device: str) -> bool:
        with writing(self.engine) as session:
            run = session.get(Run, run_id)
            if run is None or run.status != "queued":
                return True
            folder = self._folder(run)
            alive = folder.is_alive()  # started by a server that died before it could note it, or by a command
            if alive and _has_ended(folder):
                return True  # the process of the last attempt is just leaving
            runs.mark_running(session, folder, run, device)
            session.commit()
        return alive or self._hand_over(run, folder, device)

    def _hand_over(self, run: Run, folder: RunFolder, device: str) -> bool:
        try:
            self.executor.start(folder, run.attempt, threads_for(run.model), device)
            return True
        except RunNotStarted:
            return True  # an attempt that vanished at once; the next tick deals with it
        except ExecutorUnavailable as error:
            logger.warning("Run %s waits: %s", run.id, error)
            with writing(self.engine) as session:
                again = session.get(Run, run.id)
                if again is not None and again.status == "running" and not folder.is_alive():
                    runs.mark_not_started(session, folder, again)
                session.commit()
            return False


def _has_ended(folder: RunFolder) -> bool:
    """Whether the last event ends an attempt."""
    last = None
    for last, _end in iter_valid_events(folder.events_path):  # noqa: B007  (wanted after the loop)
        pass
    return last is not None and last["type"] in TERMINAL


def _candidates(wish: str, accelerators: list[str]) -> list[str]:
    """The devices that a config's ``device`` allows, best first; a missing one stays, so that the run says so itself."""
    if wish == "auto":
        return accelerators or ["cpu"]
    if wish == "cuda":
        return [name for name in accelerators if name.startswith("cuda")] or ["cuda:0"]
    return [wish]
