"""The trainer host: a process that has PyTorch loaded and forks a child for each run and for each query.

A query is a request for something that needs PyTorch, such as a prediction or a measurement. ``python -m trainer.host
--home HOME`` starts the host. The host itself runs no kernel, starts no thread and uses no GPU, because a child that is
forked after any of these may hang.
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
from trainer.host.children import Children, Job
from trainer.host.connections import Connection, Connections
from trainer.host.memory import read_memory
from trainer.host.response_cache import ResponseCache, key_of
from trainer.i18n import _
from trainer.run_folder import RunFolder, now, write_json

IDLE_SECONDS = 60.0  # without connections and children before the host exits
TICK_SECONDS = 1.0
QUERY_SECONDS: dict[type, float] = {  # after which the child is killed
    wire.Describe: 10.0,
    wire.Devices: 30.0,
    wire.Predict: 15.0,
    wire.Measure: 120.0,
}
MAX_QUERIES = 4  # at the same time


class Host:
    """The host's event loop, in one thread.

    ``execute`` trains a run; None stands for ``trainer.runtime.execute``. With ``spawn``, children are started in a new
    interpreter in place of a fork.
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
        self._cache = ResponseCache()
        self._stopping = False

    def serve(self) -> int:
        """Serve until stopped or idle for ``idle_seconds``, and return the exit status.

        Returns at once if there already is a host for this home and version of the code.
        """
        lock = self._take_lock()
        if lock is None:
            return 0
        self._warm_up()
        self._selector = selectors.DefaultSelector()
        greeting = {"protocol": wire.PROTOCOL, "version": self.version, "pid": os.getpid()}
        self._connections = Connections(self._selector, greeting, self._handle)
        self._children = Children(self._selector, self._report_start, self._handle_end)
        self._listen()
        self._busy_at = time.monotonic()
        with self._signals():
            with contextlib.suppress(OSError):  # look for devices now: a GPU's driver may take seconds the first time
                self._start_child(wire.Devices(), time.monotonic() + QUERY_SECONDS[wire.Devices])
            while not self._stopping and not self._is_idle():
                self.tick(min(TICK_SECONDS, self._idle_seconds))
        self._children.interrupt_measurements()
        self._socket_path.unlink(missing_ok=True)
        self._close_inherited()
        lock.close()
        return 0

    def tick(self, seconds: float) -> None:
        """Wait at most ``seconds`` for sockets and pipes, handle those that are ready, then check the children."""
        for key, events in self._selector.select(seconds):
            key.data(events)
        self._children.reap()
        if self._connections or self._children:
            self._busy_at = time.monotonic()

    def _is_idle(self) -> bool:
        return time.monotonic() - self._busy_at >= self._idle_seconds

    # Beginning and end ---------------------------------------------------------------------------------------------

    def _take_lock(self, patience_seconds: float = 2.0) -> IO[bytes] | None:
        """The locked file of this host, or None if another host holds the lock.

        A server that checks for a host takes the lock for a moment, so this tries for ``patience_seconds``.
        """
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
        """Import what the children need. Exclude it from garbage collection, so that forked children share its memory."""
        if not self._spawn:
            # torch imports this with the first optimizer or meta tensor, which would take every child a second.
            import torch._dynamo  # noqa: F401

            from trainer.fast import conv_pool as fused  # noqa: F401
            from trainer.host import describe, predict  # noqa: F401

            if self._execute is None:
                from trainer.runtime import execute

                self._execute = execute
        gc.collect()
        gc.freeze()

    def _listen(self) -> None:
        """Listen where servers of this version look. The socket of a killed host is replaced."""
        wire.check_socket_folder(self.home, self._socket_path)
        self._socket_path.unlink(missing_ok=True)
        self._connections.listen(self._socket_path)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Install signal handlers. They only wake the loop and set flags."""
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
        """Close the host's sockets, pipes and lock: when the host exits, and in a forked child."""
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
                self._query(connection, request)
        except OSError as problem:  # no process or no file descriptor is free
            message = _("The machine could not start a process: {reason}").format(reason=problem)
            self._reply(connection, request.id, wire.error("unavailable", message))

    def _reply(self, connection: Connection, request_id: int, response: dict[str, Any]) -> None:
        self._connections.send(connection, {"id": request_id, **response})

    def _start(self, connection: Connection, request: wire.Start) -> None:
        """Start a run, unless its process is already running. The response is the same in both cases.

        A server may send the same request again, for example because it did not get the first response.
        """
        job = next((job for job in self._children.runs if _is_same_run(job.request, request)), None)
        if job is None:
            if not request.folder.is_dir():
                message = _("There is no folder {path}.").format(path=request.folder)
                self._reply(connection, request.id, wire.error("invalid", message))
                return
            self._children.interrupt_measurements()
            job = self._start_child(request, None)
        job.waiting.append((connection, request.id))
        self._report_start(job)

    def _query(self, connection: Connection, request: wire.Request) -> None:
        """Handle a query from the cache or in a child. Equal queries at the same time share a child."""
        if isinstance(request, wire.Measure) and self._children.runs:
            self._reply(connection, request.id, _interrupted())
            return
        known = self._cache.find(request)
        if known is not None:
            self._reply(connection, request.id, known)
            return
        queries = self._children.queries
        job = next((job for job in queries if key_of(job.request) == key_of(request)), None)
        if job is None:
            if len(queries) >= MAX_QUERIES:
                message = _("The trainer is busy; try again soon.")
                self._reply(connection, request.id, wire.error("unavailable", message))
                return
            job = self._start_child(request, time.monotonic() + QUERY_SECONDS[type(request)])
        job.waiting.append((connection, request.id))

    def _start_child(self, request: wire.Request, deadline: float | None) -> Job:
        if self._spawn:
            started = forking.spawn(request)
        else:
            assert self._execute is not None, "set by _warm_up"
            started = forking.fork(request, self._execute, self._close_inherited)
        return self._children.add(request, started, deadline)

    # Responses -----------------------------------------------------------------------------------------------------

    def _report_start(self, job: Job) -> None:
        """Respond to the clients that wait for the start of a run, once its process holds the lock."""
        if job.is_run and job.has_lock:
            self._respond(job, {"result": {"pid": job.pid}})

    def _handle_end(self, job: Job, status: int) -> None:
        if isinstance(job.request, wire.Start):
            _write_exit(job.request, status, job)
            self._respond(job, wire.error("not started", _how_it_ended(_("The run's process"), status)))
            return
        response = _response_of(job, status)
        self._cache.keep(job.request, response)
        self._respond(job, response)

    def _respond(self, job: Job, response: dict[str, Any]) -> None:
        for connection, request_id in job.waiting:
            self._reply(connection, request_id, response)
        job.waiting.clear()


def _is_same_run(request: wire.Request, start: wire.Start) -> bool:
    return isinstance(request, wire.Start) and request.folder == start.folder


def _write_exit(request: wire.Start, status: int, job: Job) -> None:
    """Write ``exit-N.json``: how the process of a run ended, and the machine's memory before and after."""
    folder = RunFolder(request.folder)
    before = {f"{name}_before": value for name, value in job.memory_before.items() if name != "total_bytes"}
    memory = {"peak_bytes": job.peak_bytes, **read_memory(), **before}
    try:
        folder.write_exit(request.attempt, status)
        ending = folder.read_exit(request.attempt) or {}
        write_json(folder.exit_path(request.attempt), {**ending, "memory": memory})
    except OSError as problem:  # the folder is gone or the disk is full; the free lock still shows that the run ended
        _log(f"could not write how the process of {request.folder} ended: {problem}")


def _response_of(job: Job, status: int) -> dict[str, Any]:
    try:
        response: dict[str, Any] = json.loads(job.output)
    except ValueError:
        if job.is_interrupted:
            return _interrupted()
        return wire.error("unavailable", _how_it_ended(_("The process for this request"), status))
    return response


def _interrupted() -> dict[str, Any]:
    return wire.error("interrupted", _("Nothing is measured while a run is in progress."))


def _how_it_ended(who: str, wait_status: int) -> str:
    code = os.waitstatus_to_exitcode(wait_status)
    if code < 0:
        return _("{who} was ended by signal {number}.").format(who=who, number=-code)
    return _("{who} ended with exit status {code}.").format(who=who, code=code)


def _log(line: str) -> None:
    """Write a line to the host's log. A full disk loses it, but ends no host."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{now()} {line}\n")
        sys.stderr.flush()


def prepare_environment(home: Path) -> None:
    """Set environment variables: those that numpy reads when it is imported, and those that runs inherit."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # otherwise numpy starts threads when it is imported
    os.environ["RUNOFF_HOME"] = str(home)
    os.environ.pop("RUNOFF_TOKEN", None)


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments and run a host. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainer.host", description="Starts runs for Runoff's server.")
    parser.add_argument("--home", type=Path, required=True, help="the folder that holds everything Runoff writes")
    home = parser.parse_args(arguments).home.resolve()
    prepare_environment(home)
    return Host(home).serve()
