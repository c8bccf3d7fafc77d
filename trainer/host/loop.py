"""The trainer host: one warm process that forks a child for each run and for each question that needs torch.

``python -m trainer.host --home HOME`` starts it. The host itself runs no kernel, starts no thread and touches no GPU: a
child forked after any of these may hang. Here are its loop, its beginning and end, and what it does with each request.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trainer import wire
from trainer.host import forking
from trainer.host.answers import Answers, key_of
from trainer.host.children import Children, Work
from trainer.host.connections import Connection, Connections
from trainer.host.memory import read_memory
from trainer.i18n import _
from trainer.run_folder import RunFolder, now, write_json

IDLE_SECONDS = 60.0  # without connection and without children before the host ends
TICK_SECONDS = 1.0
ANSWER_SECONDS: dict[type, float] = {  # after that the child is killed
    wire.Describe: 10.0,
    wire.Devices: 30.0,
    wire.Predict: 15.0,
    wire.Measure: 120.0,
}
MAX_QUESTIONS = 4  # at once


class Host:
    """The single-threaded loop.

    ``execute`` trains a run (None: ``trainer.runtime.execute``); ``spawn`` starts children without fork.
    """

    def __init__(
        self,
        home: Path,
        *,
        execute: forking.Execute | None = None,
        idle_seconds: float = IDLE_SECONDS,
        spawn: bool = sys.platform == "darwin",
    ) -> None:
        self.home = home.resolve()
        self.version = wire.code_version()
        self._socket_path = wire.socket_path(self.home, self.version)
        self._execute = execute
        self._idle_seconds = idle_seconds
        self._spawn = spawn
        self._answers = Answers()
        self._stopping = False

    def serve(self) -> int:
        """Serve until stopped or idle for long; at once 0 where this home and version has a host already."""
        lock = self._take_lock()
        if lock is None:
            return 0
        self._warm_up()
        self._selector = selectors.DefaultSelector()
        greeting = {"protocol": wire.PROTOCOL, "version": self.version, "pid": os.getpid()}
        self._connections = Connections(self._selector, greeting, self._handle)
        self._children = Children(self._selector, self._answer_start, self._handle_end)
        self._listen()
        self._busy_at = time.monotonic()
        with self._signals():
            with contextlib.suppress(OSError):  # asked ahead: the first use of a GPU's driver may take seconds
                self._begin(wire.Devices(), time.monotonic() + ANSWER_SECONDS[wire.Devices])
            while not self._stopping and not self._is_idle():
                self.tick(min(TICK_SECONDS, self._idle_seconds))
        self._children.interrupt_measurements()
        self._socket_path.unlink(missing_ok=True)
        self._close_inherited()
        lock.close()
        return 0

    def tick(self, seconds: float) -> None:
        """Handle what is ready, waiting at most ``seconds`` for it; then look after the children."""
        for key, events in self._selector.select(seconds):
            key.data(events)
        self._children.reap()
        if self._connections or self._children:
            self._busy_at = time.monotonic()

    def _is_idle(self) -> bool:
        return time.monotonic() - self._busy_at >= self._idle_seconds

    # Beginning and end ---------------------------------------------------------------------------------------------

    def _take_lock(self, patience_seconds: float = 2.0) -> IO[bytes] | None:
        """The host's lock; None where another holds it. A server may probe it for an instant, hence the patience."""
        self._lock = wire.lock_path(self.home, self.version).open("ab")
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._lock
            except OSError:
                if time.monotonic() >= deadline:
                    self._lock.close()
                    return None
                time.sleep(0.02)

    def _warm_up(self) -> None:
        """Import what children need, once, and keep it from the garbage collector so that memory pages stay shared."""
        if not self._spawn:
            # torch imports this only for the first optimizer or meta tensor: a second that every child would spend
            import torch._dynamo  # noqa: F401

            from trainer.fast import conv_pool as fused  # noqa: F401
            from trainer.host import describe, predict  # noqa: F401

            if self._execute is None:
                from trainer.runtime import execute

                self._execute = execute
        gc.collect()
        gc.freeze()

    def _listen(self) -> None:
        """Listen where servers of this version look. A killed host's socket is replaced: this one holds the lock."""
        wire.check_socket_folder(self.home, self._socket_path)
        self._socket_path.unlink(missing_ok=True)
        self._connections.listen(self._socket_path)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals wake the loop and set flags, no more."""
        self._awake, self._waker = socket.socketpair()
        self._awake.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._awake, selectors.EVENT_READ, self._drain_signals)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _drain_signals(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._awake.recv(4096)

    def _close_inherited(self) -> None:
        """Close all that is the host's, at its end and in a forked child."""
        self._selector.close()
        for closing in (self._connections, self._children, self._awake, self._waker, self._lock):
            closing.close()

    # Requests ------------------------------------------------------------------------------------------------------

    def _handle(self, connection: Connection, line: bytes) -> None:
        try:
            request = wire.parse_request(line)
        except ValueError as problem:
            self._connections.send(connection, wire.error("bad request", str(problem)[:1000]))
            return
        try:
            if isinstance(request, wire.Start):
                self._start(connection, request)
            elif isinstance(request, wire.End):
                self._stopping = not self._children.runs
                self._reply(connection, request.id, {"result": {"ending": self._stopping}})
            else:
                self._ask(connection, request)
        except OSError as problem:  # no process or no file descriptor is free
            message = _("The machine could not start a process: {reason}").format(reason=problem)
            self._reply(connection, request.id, wire.error("unavailable", message))

    def _reply(self, connection: Connection, request_id: int, answer: dict[str, Any]) -> None:
        self._connections.send(connection, {"id": request_id, **answer})

    def _start(self, connection: Connection, request: wire.Start) -> None:
        """Start a run. Asked again for one that runs (after a lost answer, say), the answer is that of the first."""
        work = next((work for work in self._children.runs if _is_same_run(work.request, request)), None)
        if work is None:
            if not request.folder.is_dir():
                message = _("There is no folder {path}.").format(path=request.folder)
                self._reply(connection, request.id, wire.error("invalid", message))
                return
            self._children.interrupt_measurements()
            work = self._begin(request, None)
        work.waiting.append((connection, request.id))
        self._answer_start(work)

    def _ask(self, connection: Connection, request: wire.Request) -> None:
        """Answer a question from memory, or by a child; the same question asked twice at once has one child."""
        if isinstance(request, wire.Measure) and self._children.runs:
            self._reply(connection, request.id, _interrupted())
            return
        known = self._answers.find(request)
        if known is not None:
            self._reply(connection, request.id, known)
            return
        questions = self._children.questions
        work = next((work for work in questions if key_of(work.request) == key_of(request)), None)
        if work is None:
            if len(questions) >= MAX_QUESTIONS:
                message = _("The trainer is busy; try again soon.")
                self._reply(connection, request.id, wire.error("unavailable", message))
                return
            work = self._begin(request, time.monotonic() + ANSWER_SECONDS[type(request)])
        work.waiting.append((connection, request.id))

    def _begin(self, request: wire.Request, deadline: float | None) -> Work:
        if self._spawn:
            started = forking.spawn(request)
        else:
            assert self._execute is not None, "warmed up"
            started = forking.fork(request, self._execute, self._close_inherited)
        return self._children.add(request, started, deadline)

    # Answers -------------------------------------------------------------------------------------------------------

    def _answer_start(self, work: Work) -> None:
        """Answer those who wait for the start of a run, once its process holds the lock."""
        if work.is_run and work.has_lock:
            self._answer(work, {"result": {"pid": work.pid}})

    def _handle_end(self, work: Work, status: int) -> None:
        if isinstance(work.request, wire.Start):
            _write_exit(work.request, status, work)
            self._answer(work, wire.error("not started", _how_it_ended(_("The run's process"), status)))
            return
        answer = _final_answer(work, status)
        self._answers.keep(work.request, answer)
        self._answer(work, answer)

    def _answer(self, work: Work, answer: dict[str, Any]) -> None:
        for connection, request_id in work.waiting:
            self._reply(connection, request_id, answer)
        work.waiting.clear()


def _is_same_run(request: wire.Request, start: wire.Start) -> bool:
    return isinstance(request, wire.Start) and request.folder == start.folder


def _write_exit(request: wire.Start, status: int, work: Work) -> None:
    """Note how a run's process ended, and what there was of memory before and after it."""
    folder = RunFolder(request.folder)
    before = {f"{name}_before": value for name, value in work.memory_before.items() if name != "total_bytes"}
    memory = {"peak_bytes": work.peak_bytes, **read_memory(), **before}
    try:
        folder.write_exit(request.attempt, status)
        ending = folder.read_exit(request.attempt) or {}
        write_json(folder.exit_path(request.attempt), {**ending, "memory": memory})
    except OSError as problem:  # the folder is gone or the disk is full: the lock still shows that the run ended
        _log(f"no exit file for {request.folder}: {problem}")


def _final_answer(work: Work, status: int) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(work.output)
    except ValueError:
        if work.is_interrupted:
            return _interrupted()
        return wire.error("unavailable", _how_it_ended(_("The process for this request"), status))
    return answer


def _interrupted() -> dict[str, Any]:
    return wire.error("interrupted", _("Nothing is measured while a run is in progress."))


def _how_it_ended(who: str, wait_status: int) -> str:
    code = os.waitstatus_to_exitcode(wait_status)
    if code < 0:
        return _("{who} was ended by signal {number}.").format(who=who, number=-code)
    return _("{who} ended with exit status {code}.").format(who=who, code=code)


def _log(line: str) -> None:
    sys.stderr.write(f"{now()} {line}\n")
    sys.stderr.flush()


def prepare_environment(home: Path) -> None:
    """Set what must be set before numpy is imported, and what runs inherit."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # otherwise numpy starts threads when it is imported
    os.environ["RUNOFF_HOME"] = str(home)
    os.environ.pop("RUNOFF_TOKEN", None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.host", description="Starts runs for Runoff's server.")
    parser.add_argument("--home", type=Path, required=True, help="the folder that holds everything Runoff writes")
    home = parser.parse_args(arguments).home.resolve()
    prepare_environment(home)
    return Host(home).serve()
