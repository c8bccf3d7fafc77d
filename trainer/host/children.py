"""The host's child processes: the request of each, its output, the clients that wait for it, and how it ended."""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from trainer import wire
from trainer.host.connections import Connection
from trainer.host.forking import LOCKED, Child
from trainer.host.memory import read_memory

_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes per unit of ru_maxrss


@dataclass(eq=False)
class Job:
    """A child process and the request that it handles."""

    request: wire.Request
    pid: int
    pipe: int | None  # file descriptor; None once closed
    deadline: float | None  # when the child is killed, by the monotonic clock; None for a run
    output: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[Connection, int]] = field(default_factory=list)  # clients, each with the id of its request
    is_interrupted: bool = False
    memory_before: dict[str, int] = field(default_factory=read_memory)
    peak_bytes: int = 0  # most resident memory; known once the child has ended

    @property
    def is_run(self) -> bool:
        return isinstance(self.request, wire.Start)

    @property
    def is_measurement(self) -> bool:
        return isinstance(self.request, wire.Measure)

    @property
    def has_lock(self) -> bool:
        """Whether the process of a run has reported that it holds the lock of the run folder."""
        return LOCKED in self.output

    def interrupt(self) -> None:
        """Kill the child and remember that it was interrupted."""
        self.is_interrupted = True
        os.kill(self.pid, signal.SIGKILL)


class Children:
    """All child processes that are running.

    ``on_output`` is called when a child has written to its pipe, and ``on_end`` with its wait status when it has ended.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_output: Callable[[Job], None],
        on_end: Callable[[Job, int], None],
    ) -> None:
        self._selector = selector
        self._on_output = on_output
        self._on_end = on_end
        self._jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def runs(self) -> list[Job]:
        return [job for job in self._jobs.values() if job.is_run]

    @property
    def queries(self) -> list[Job]:
        """The children that handle any request other than ``wire.Start``."""
        return [job for job in self._jobs.values() if not job.is_run]

    def add(self, request: wire.Request, started: Child, deadline: float | None) -> Job:
        """Watch a child that was just started. ``deadline`` (monotonic) is when it is killed; None for never."""
        job = Job(request, started.pid, started.pipe, deadline)
        self._jobs[job.pid] = job
        self._selector.register(started.pipe, selectors.EVENT_READ, lambda _events: self._read(job))
        return job

    def interrupt_measurements(self) -> None:
        """Stop all measurements, because a run is about to start.

        A measurement beside a run would slow the run, and its numbers would be wrong.
        """
        for job in self._jobs.values():
            if job.is_measurement:
                job.interrupt()

    def reap(self) -> None:
        """Handle children that have ended. Kill those past their deadline and measurements that no client waits for."""
        for job in [*self._jobs.values()]:
            pid, status, usage = os.wait4(job.pid, os.WNOHANG)
            if pid:
                job.peak_bytes = usage.ru_maxrss * _PEAK_UNIT
                self._end(job, status)
            elif job.deadline is not None and time.monotonic() > job.deadline:
                os.kill(job.pid, signal.SIGKILL)
                job.deadline = None
            elif job.is_measurement and not any(connection.is_open for connection, _id in job.waiting):
                job.interrupt()

    def close(self) -> None:
        """Close all pipes without unregistering them: for a host that exits, and for a forked child."""
        for job in self._jobs.values():
            if job.pipe is not None:
                os.close(job.pipe)

    def _read(self, job: Job) -> None:
        while job.pipe is not None:
            try:
                data = os.read(job.pipe, 65_536)
            except BlockingIOError:
                break
            if not data:
                self._close_pipe(job)
            job.output += data
        self._on_output(job)

    def _close_pipe(self, job: Job) -> None:
        assert job.pipe is not None
        self._selector.unregister(job.pipe)
        os.close(job.pipe)
        job.pipe = None

    def _end(self, job: Job, status: int) -> None:
        self._read(job)
        if job.pipe is not None:  # still open in a process that the child started
            self._close_pipe(job)
        del self._jobs[job.pid]
        self._on_end(job, status)
