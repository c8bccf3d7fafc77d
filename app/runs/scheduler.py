"""The scheduler starts queued runs when slots are free, and handles runs whose process ended unexpectedly."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import Engine

from app.logs import log_failure
from app.runs import lifecycle, starting
from app.runs.executors import Executor, ExecutorUnavailable, RunNotStarted
from app.runs.indexer import Indexer
from app.runs.measuring import Measuring
from app.runs.presence import Check, unchecked
from app.runs.queue import failed_runs, queued_runs, restart_in, running_runs
from app.runs.room import Room
from app.runs.slots import free_device
from app.runs.tidying import tidy
from app.store.database import is_damage, reading, writing
from app.store.tables import Run
from trainer.cores import threads_for
from trainer.damage import damage_of
from trainer.events import TERMINAL
from trainer.files import to_iso
from trainer.heartbeat import silent_since
from trainer.run_folder import RunFolder, iter_valid_events

logger = logging.getLogger(__name__)
_BUSY_SECONDS, _IDLE_SECONDS = 0.2, 1.0
_TIDY_SECONDS = 24 * 3600.0
_BEFORE_SHORT_SECONDS = 3600.0  # a run may fail some time before the server sees that the disk is full


class Scheduler:
    """One thread that calls ``tick`` about once a second.

    ``folder`` holds the run folders. ``slots`` is the number of runs at a time, or None for the rule of
    ``app.runs.slots``. Without ``measuring``, nothing is measured while the server is idle.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        indexer: Indexer,
        executor: Executor,
        slots: int | None = None,
        measuring: Measuring | None = None,
        hang_seconds: float | None = None,
        reserve: int = 0,
        home_problem: Check = unchecked,
    ) -> None:
        self.engine = engine
        self.folder = folder
        self.indexer = indexer
        self.executor = executor
        self._slots = slots
        self._measuring = measuring
        self._hang_seconds = hang_seconds
        self._reserve = reserve  # bytes
        self._home_problem = home_problem
        self.watch_seconds = 30.0  # how long a hanging run must have been watched before it is ended
        self._short_since: str | None = None  # since when the free space is below the reserve
        self._silent: dict[str, tuple[float, float]] = {}  # run -> its last sign of life, and since when it was seen
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._unavailable = ""  # why the executor is not ready
        self._not_started = ""  # why it could not start the last run
        self._tidy_at = time.monotonic() + _TIDY_SECONDS
        self._began_at, self._has_completed_starts = time.time(), False

    # the thread
    def begin(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop the thread. Runs continue."""
        if self._measuring:
            self._measuring.end()
        self._stop.set()
        self._wake.set()
        if self._thread:
            self._thread.join(timeout=10)

    def wake(self) -> None:
        """Start the next tick now."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            busy = self._guarded(self.tick)
            self._wake.wait(_BUSY_SECONDS if busy else _IDLE_SECONDS)
            self._wake.clear()

    def _guarded(self, work: Callable[[], bool]) -> bool:
        """Call ``work``. An error, such as a full disk, is logged; the thread continues and tries again."""
        try:
            return work()
        except Exception as error:
            if is_damage(error):
                self.indexer.suspect()
            else:
                log_failure(logger, "The scheduler will try again.", error)
            return True

    @property
    def waits_for(self) -> str:
        """Why the executor can't start the queued runs, as a sentence; empty if it can or nothing is queued."""
        return self._unavailable or self._not_started

    # one tick
    def tick(self) -> bool:
        """Index new events, handle runs whose process has ended, start queued runs, and measure when idle.

        Returns whether any run is queued or running. Does nothing while the home is not there.
        """
        if problem := self._home_problem():
            logger.warning(problem)
            return False
        self._look_at_room()  # first: on a full disk the rest may fail
        self._complete_starts()
        self._tidy()
        self.indexer.tick()
        with reading(self.engine) as session:
            running, queued = running_runs(session), queued_runs(session)
        for run in running:
            with self._isolated(run.id):
                if not self._folder(run).is_alive():
                    self._handle_vanished(run.id)
                else:
                    self._watch(run)
        self._start_queued(queued)
        if self._measuring:
            self._measuring.tick(busy=bool(running or queued))
        return bool(running or queued)

    def _complete_starts(self) -> None:
        """Complete the sweeps that an earlier server has noted, if the disk was too full for that at the start."""
        if not self._has_completed_starts:
            with suppress(OSError):
                starting.complete(self.folder.parent, before=self._began_at)
                self._has_completed_starts = True

    def _tidy(self) -> None:
        """Once a day, remove old deleted runs and old records of idempotency keys."""
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + _TIDY_SECONDS
            tidy(self.folder.parent)

    @contextmanager
    def _isolated(self, run_id: str) -> Iterator[None]:
        """Log an ``OSError`` of one run, for example because its folder was deleted, so that the others are still handled."""
        try:
            yield
        except OSError as error:
            log_failure(logger, f"Run {run_id} could not be checked. The scheduler will try again.", error)

    def _folder(self, run: Run) -> RunFolder:
        return RunFolder(self.folder / run.id)

    def _handle_vanished(self, run_id: str) -> None:
        """Handle a run marked as running whose lock is free, so its process has ended.

        Its last events are read first. If none of them ends the run, the process ended unexpectedly.
        """
        folder = RunFolder(self.folder / run_id)
        problems = damage_of(folder)
        with writing(self.engine) as session:
            run = self.indexer.read(session, run_id)
            if run is not None and run.status == "running":
                logger.warning("The process of run %s ended unexpectedly.", run_id)
                if problems:
                    lifecycle.mark_damaged(session, run, problems)
                else:
                    lifecycle.end_vanished_attempt(session, folder, run)
            session.commit()

    def _watch(self, run: Run) -> None:
        """Note since when a run has given no sign of life; end it where ``RUNOFF_HANG_SECONDS`` says so."""
        folder = self._folder(run)
        silent = silent_since(folder.heartbeat_path)
        since = None if silent is None else to_iso(silent)
        if since != run.hanging_since:
            with writing(self.engine) as session:
                found = session.get(Run, run.id)
                if found is not None and found.status == "running":
                    lifecycle.note_silence(session, found, since)
                session.commit()
        if silent is not None and self._hang_seconds and self._hangs(run.id, silent, self._hang_seconds):
            logger.warning("Run %s has given no sign of life since %s, so it is ended.", run.id, since)
            self.executor.force_stop(folder, run.attempt)

    def _hangs(self, run_id: str, silent: float, limit: float) -> bool:
        """Whether a run has been silent for so long. The server itself must have seen a part of it.

        After the machine was suspended every heartbeat is old, and the loops have had no time for the next.
        """
        last, seen_at = self._silent.get(run_id, (0.0, 0.0))
        if last != silent:
            self._silent[run_id] = last, seen_at = silent, time.monotonic()
        watched = time.monotonic() - seen_at >= min(limit, self.watch_seconds)
        return watched and time.time() - silent > limit

    def _look_at_room(self) -> Room:
        """The free space now. Also notes the time at which it falls below the reserve."""
        room = Room.of(self.folder.parent, self._reserve)
        if room.is_short and self._short_since is None:
            self._short_since = to_iso(time.time() - _BEFORE_SHORT_SECONDS)
        return room

    def _start_queued(self, queued: list[Run]) -> None:
        room = self._look_at_room()
        if room.is_ample and self._short_since is not None:
            self._resume_after_full_disk(self._short_since)
            self._short_since = None
        accelerators = self._accelerators(wanted=bool(queued))
        if not queued:
            self._unavailable = self._not_started = ""
            return
        if accelerators is None:
            self._note_queue_reason("host", queued)
            return
        if room.is_short:
            self._note_queue_reason("disk", queued)
            return
        with reading(self.engine) as session:
            running = running_runs(session)
        for number, run in enumerate(queued):
            if restart_in(run) > 0:
                continue  # its process ended unexpectedly more than once: other runs go first
            device = free_device(run, running, accelerators, self._slots)
            can_start = device is not None
            if device is not None:
                with self._isolated(run.id):  # a run whose files can't be read must not keep the others waiting
                    can_start = self._start(run.id, device)
            if not can_start:
                self._note_queue_reason("slot" if device is None else "host", queued[number:])
                return  # runs start strictly in order: none overtakes a run that waits
            run.device = device
            running.append(run)

    def _note_queue_reason(self, reason: str, waiting: list[Run]) -> None:
        if any(run.queue_reason != reason for run in waiting):
            with writing(self.engine) as session:
                lifecycle.note_queue_reason(session, reason)
                session.commit()

    def _resume_after_full_disk(self, since: str) -> None:
        """Queue the runs again that failed after ``since`` because the disk was full."""
        with reading(self.engine) as session:
            failed = [run for run in failed_runs(session) if (run.error or {}).get("error") == "DiskFull"]
        for run in (run for run in failed if not run.archived and (run.finished_at or "") >= since):
            logger.warning("There is space on the disk again, so run %s continues.", run.id)
            with self._isolated(run.id), writing(self.engine) as session:
                found = session.get(Run, run.id)
                if found is not None and found.status == "failed" and not found.imported:
                    lifecycle.requeue_after_full_disk(session, self._folder(run), found)
                session.commit()

    def _accelerators(self, *, wanted: bool) -> list[str] | None:
        """The names of the devices other than the CPU, or None while the executor can't start runs.

        If ``wanted``, the executor is started where it is not ready.
        """
        try:
            if wanted:
                self.executor.ensure_host()
            devices = (self.executor.known_devices() or self.executor.devices()) if self.executor.ready() else None
        except ExecutorUnavailable as error:
            if str(error) != self._unavailable:  # log each reason once, not at every tick
                self._unavailable = str(error)
                logger.warning("The queue waits: %s", error)
            return None
        if devices is None:
            return None  # the host is starting; why an earlier one ended may still matter, so the reason stays
        self._unavailable = ""
        return [str(d["name"]) for d in devices if d["name"] != "cpu"]

    def _start(self, run_id: str, device: str) -> bool:
        """Start the next attempt of a run. Returns False if the executor can't start any run now."""
        folder = RunFolder(self.folder / run_id)
        alive = (
            folder.is_alive()
        )  # started from the command line, or by a server that ended before it recorded the start
        if alive and _has_ended(folder):
            return True  # the process of the last attempt is about to exit
        problems = [] if alive else damage_of(folder)
        with writing(self.engine) as session:
            run = session.get(Run, run_id)
            if run is None or run.status != "queued":
                return True
            is_refused = run.imported and not alive
            if problems:
                lifecycle.mark_damaged(session, run, problems)
            elif is_refused:
                lifecycle.refuse_imported(session, run)
            else:
                lifecycle.begin_attempt(session, folder, run, device)
            session.commit()
        if problems or is_refused:
            return True
        return alive or self._hand_over(run, folder, device)

    def _hand_over(self, run: Run, folder: RunFolder, device: str) -> bool:
        try:
            self.executor.start(folder, run.attempt, threads_for(run.model), device)
            self._not_started = ""
            return True
        except RunNotStarted:
            return True  # its process ended at once; the next tick handles that
        except ExecutorUnavailable as error:
            self._not_started = str(error)
            logger.warning("Run %s waits: %s", run.id, error)
            with writing(self.engine) as session:
                again = session.get(Run, run.id)
                if again is not None and again.status == "running" and not folder.is_alive():
                    lifecycle.take_back_attempt(session, folder, again)
                session.commit()
            return False


def _has_ended(folder: RunFolder) -> bool:
    """Whether the last event in the log ends an attempt."""
    last = None
    for last, _end in iter_valid_events(folder.events_path):  # noqa: B007  (used after the loop)
        pass
    return last is not None and last["type"] in TERMINAL
