"""The host's list of its children: what each was asked, what it has written, who waits for it, and how it ended."""

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

_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss


@dataclass(eq=False)
class Work:
    """A child at work."""

    request: wire.Request
    pid: int
    pipe: int | None  # None once closed
    deadline: float | None  # monotonic; None for a run
    output: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[Connection, int]] = field(default_factory=list)  # with the id of the request
    is_interrupted: bool = False
    memory_before: dict[str, int] = field(default_factory=read_memory)
    peak_bytes: int = 0  # known at its end

    @property
    def is_run(self) -> bool:
        return isinstance(self.request, wire.Start)

    @property
    def is_measurement(self) -> bool:
        return isinstance(self.request, wire.Measure)

    @property
    def has_lock(self) -> bool:
        """Whether a run's process has said that it holds the run's lock."""
        return LOCKED in self.output

    def interrupt(self) -> None:
        """End a measurement at once."""
        self.is_interrupted = True
        os.kill(self.pid, signal.SIGKILL)


class Children:
    """All children at work. ``on_output`` is called when one has written, ``on_end`` with its wait status at its end."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_output: Callable[[Work], None],
        on_end: Callable[[Work, int], None],
    ) -> None:
        self._selector = selector
        self._on_output = on_output
        self._on_end = on_end
        self._works: dict[int, Work] = {}

    def __len__(self) -> int:
        return len(self._works)

    @property
    def runs(self) -> list[Work]:
        return [work for work in self._works.values() if work.is_run]

    @property
    def questions(self) -> list[Work]:
        return [work for work in self._works.values() if not work.is_run]

    def add(self, request: wire.Request, started: Child, deadline: float | None) -> Work:
        """Look after a child that was just started; past ``deadline`` it is killed."""
        work = Work(request, started.pid, started.pipe, deadline)
        self._works[work.pid] = work
        self._selector.register(started.pipe, selectors.EVENT_READ, lambda _events: self._read(work))
        return work

    def interrupt_measurements(self) -> None:
        """Nothing is measured beside a run: it would slow the run, and the figures would be wrong."""
        for work in self._works.values():
            if work.is_measurement:
                work.interrupt()

    def reap(self) -> None:
        """Notice children that ended; end those that take too long, and measurements that nobody waits for."""
        for work in [*self._works.values()]:
            pid, status, usage = os.wait4(work.pid, os.WNOHANG)
            if pid:
                work.peak_bytes = usage.ru_maxrss * _PEAK_UNIT
                self._end(work, status)
            elif work.deadline is not None and time.monotonic() > work.deadline:
                os.kill(work.pid, signal.SIGKILL)
                work.deadline = None
            elif work.is_measurement and not any(connection.is_open for connection, _id in work.waiting):
                work.interrupt()

    def close(self) -> None:
        """Close all pipes, at the host's end and in a forked child. The selector is not told."""
        for work in self._works.values():
            if work.pipe is not None:
                os.close(work.pipe)

    def _read(self, work: Work) -> None:
        while work.pipe is not None:
            try:
                data = os.read(work.pipe, 65_536)
            except BlockingIOError:
                break
            if not data:
                self._close_pipe(work)
            work.output += data
        self._on_output(work)

    def _close_pipe(self, work: Work) -> None:
        assert work.pipe is not None
        self._selector.unregister(work.pipe)
        os.close(work.pipe)
        work.pipe = None

    def _end(self, work: Work, status: int) -> None:
        self._read(work)
        if work.pipe is not None:  # a process that the child started still has it
            self._close_pipe(work)
        del self._works[work.pid]
        self._on_end(work, status)
