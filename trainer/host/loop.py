"""The trainer host: one warm process that forks a child for each run and each question that needs torch.

``python -m trainer.host --home HOME``. Here live the socket, the connections, and the account of the children. The host
itself runs no kernel, starts no thread and touches no GPU: a child forked after any of these may hang. What children do
stands in ``trainer.host.child``, the messages in ``trainer.wire``.
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
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from trainer import wire
from trainer.host import child
from trainer.i18n import _
from trainer.run_folder import RunFolder, now

IDLE_SECONDS = 60.0  # without connection and without children before the host ends
TICK_SECONDS = 1.0
ANSWER_SECONDS: dict[type, float] = {  # then it is killed
    wire.Describe: 10.0, wire.Devices: 30.0, wire.Predict: 15.0, wire.Measure: 120.0,
}  # fmt: skip
MAX_QUESTIONS = 4  # at once
MAX_ANSWERS = 256  # kept
MAX_UNSENT = 4 * 2**20  # bytes that a client may leave unread before it is dropped
_RECEIVE = 2**18


@dataclass(eq=False)
class Connection:
    """A client's socket, with what came of its next line and what it has not read yet."""

    socket: socket.socket
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)
    is_open: bool = True


@dataclass(eq=False)
class Work:
    """A child at work: its request, what it said, and who waits for its answer."""

    request: wire.Request
    pid: int
    pipe: int | None  # None once closed
    deadline: float | None  # monotonic; None for a run
    said: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[Connection, int]] = field(default_factory=list)
    is_interrupted: bool = False

    @property
    def is_run(self) -> bool:
        return isinstance(self.request, wire.Start)

    @property
    def is_measurement(self) -> bool:
        return isinstance(self.request, wire.Measure)

    def interrupt(self) -> None:
        """End a measurement at once."""
        self.is_interrupted = True
        os.kill(self.pid, signal.SIGKILL)


class Host:
    """The single-threaded loop.

    ``execute`` trains a run (None: ``trainer.runtime.execute``); ``spawn`` starts children without fork.
    """

    def __init__(
        self,
        home: Path,
        *,
        execute: child.Execute | None = None,
        idle_seconds: float = IDLE_SECONDS,
        spawn: bool = sys.platform == "darwin",
    ) -> None:
        self.home = home.resolve()
        self.version = wire.code_version()
        self._socket_path = wire.socket_path(self.home, self.version)
        self._execute = execute
        self._idle_seconds = idle_seconds
        self._spawn = spawn
        self._works: dict[int, Work] = {}
        self._connections: set[Connection] = set()
        self._answers: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._stopping = False

    def serve(self) -> int:
        """Serve until told to stop or idle for long; at once 0 where this home and version has a host already."""
        lock = self._take_lock()
        if lock is None:
            return 0
        self._warm_up()
        self._selector = selectors.DefaultSelector()
        self._listen()
        self._busy_at = time.monotonic()
        with self._signals():
            with contextlib.suppress(OSError):  # asked ahead: the first use of a GPU's driver may take seconds
                self._begin(wire.Devices(), time.monotonic() + ANSWER_SECONDS[wire.Devices])
            while not self._stopping and not self._is_idle():
                self.tick(min(TICK_SECONDS, self._idle_seconds))
        self._interrupt_measurements()
        self._unlink_socket()
        self._close_inherited()
        lock.close()
        return 0

    def tick(self, seconds: float) -> None:
        """Handle what is ready, waiting at most ``seconds`` for it; then the children that ended or take too long."""
        for key, events in self._selector.select(seconds):
            key.data(events)
        for work in [*self._works.values()]:
            self._reap(work)
        if self._connections or self._works:
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
        """Import what children need, once, and keep it out of the garbage collector's way so that pages stay shared."""
        if not self._spawn:
            # torch imports this only for the first optimizer or meta tensor: a second that every child would spend
            import torch._dynamo  # noqa: F401

            from trainer import describe  # noqa: F401
            from trainer.fast import conv_pool as fused  # noqa: F401
            from trainer.host import predict  # noqa: F401

            if self._execute is None:
                from trainer.runtime import execute

                self._execute = execute
        gc.collect()
        gc.freeze()

    def _listen(self) -> None:
        """Listen where this version's servers look; a socket left by a killed host is replaced (we hold the lock)."""
        wire.check_socket_folder(self.home, self._socket_path)
        self._unlink_socket()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(os.fspath(self._socket_path))
        finally:
            os.umask(mask)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _unlink_socket(self) -> None:
        self._socket_path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals wake the loop and set flags, no more."""
        self._awake, waker = socket.socketpair()
        self._awake.setblocking(False)
        waker.setblocking(False)
        self._waker = waker
        self._selector.register(self._awake, selectors.EVENT_READ, self._drain_signals)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _drain_signals(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._awake.recv(4096)

    def _close_inherited(self) -> None:
        """Close all that is the host's, at its end and in a forked child."""
        self._selector.close()
        for closing in (self._listener, self._awake, self._waker, self._lock):
            closing.close()
        for connection in self._connections:
            connection.socket.close()
        for work in self._works.values():
            if work.pipe is not None:
                os.close(work.pipe)

    # Connections ---------------------------------------------------------------------------------------------------

    def _accept(self, events: int) -> None:
        try:
            client, _address = self._listener.accept()
        except OSError:  # it left already, or no descriptor is free
            return
        if not wire.peer_is_this_user(client):
            client.close()
            return
        client.setblocking(False)
        connection = Connection(client)
        self._connections.add(connection)
        self._selector.register(client, selectors.EVENT_READ, lambda events: self._serve(connection, events))
        self._send(connection, {"protocol": wire.PROTOCOL, "version": self.version, "pid": os.getpid()})

    def _serve(self, connection: Connection, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(connection)
        if events & selectors.EVENT_READ and connection.is_open:
            self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        connection.inbox += data
        while connection.is_open and (end := connection.inbox.find(b"\n")) >= 0:
            line = bytes(connection.inbox[:end])
            del connection.inbox[: end + 1]
            self._handle(connection, line)
        if len(connection.inbox) > wire.MAX_LINE:
            self._send(connection, wire.error("bad request", "The line is too long."))
            self._drop(connection)

    def _send(self, connection: Connection, message: dict[str, Any]) -> None:
        if connection.is_open:
            connection.outbox += wire.encode(message)
            self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.outbox)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(connection)
            return
        del connection.outbox[:sent]
        if len(connection.outbox) > MAX_UNSENT:
            self._drop(connection)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.outbox else 0)
        key = self._selector.get_key(connection.socket)
        if key.events != wanted:
            self._selector.modify(connection.socket, wanted, key.data)

    def _drop(self, connection: Connection) -> None:
        if connection.is_open:
            connection.is_open = False
            self._connections.discard(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()

    # Requests ------------------------------------------------------------------------------------------------------

    def _handle(self, connection: Connection, line: bytes) -> None:
        try:
            request = wire.parse_request(line)
        except ValueError as problem:
            self._send(connection, wire.error("bad request", str(problem)[:1000]))
            return
        try:
            if isinstance(request, wire.Start):
                self._start(connection, request)
            elif isinstance(request, wire.End):
                self._stopping = not any(work.is_run for work in self._works.values())
                self._send(connection, {"id": request.id, "result": {"ending": self._stopping}})
            else:
                self._ask(connection, request)
        except OSError as problem:  # no process or no descriptor to be had
            message = _("The machine could start no process: {reason}").format(reason=problem)
            self._send(connection, {"id": request.id, **wire.error("unavailable", message)})

    def _start(self, connection: Connection, request: wire.Start) -> None:
        """Start a run; asked again for one that runs (after a lost answer, say), the answer is that of the first."""
        for work in self._works.values():
            if isinstance(work.request, wire.Start) and work.request.folder == request.folder:
                break
        else:
            if not request.folder.is_dir():
                message = _("There is no folder {path}.").format(path=request.folder)
                self._send(connection, {"id": request.id, **wire.error("invalid", message)})
                return
            self._interrupt_measurements()
            work = self._begin(request, None)
        if child.LOCKED in work.said:
            self._send(connection, {"id": request.id, "result": {"pid": work.pid}})
        else:
            work.waiting.append((connection, request.id))

    def _interrupt_measurements(self) -> None:
        """Nothing is measured beside a run: it would be slowed, and the figures wrong."""
        for work in self._works.values():
            if work.is_measurement:
                work.interrupt()

    def _ask(self, connection: Connection, request: wire.Request) -> None:
        """Answer a question from memory, or by a child; the same question asked twice at once has one child."""
        if isinstance(request, wire.Measure) and any(work.is_run for work in self._works.values()):
            self._send(connection, {"id": request.id, **_interrupted()})
            return
        key = _key(request)
        if key in self._answers:
            self._answers.move_to_end(key)
            self._send(connection, {"id": request.id, **self._answers[key]})
            return
        questions = [work for work in self._works.values() if not work.is_run]
        for work in questions:
            if _key(work.request) == key:
                work.waiting.append((connection, request.id))
                return
        if len(questions) >= MAX_QUESTIONS:
            self._send(
                connection, {"id": request.id, **wire.error("unavailable", _("The trainer is busy; try again soon."))}
            )
            return
        work = self._begin(request, time.monotonic() + ANSWER_SECONDS[type(request)])
        work.waiting.append((connection, request.id))

    def _begin(self, request: wire.Request, deadline: float | None) -> Work:
        if self._spawn:
            started = child.spawn(request)
        else:
            assert self._execute is not None, "warmed up"
            started = child.fork(request, self._execute, self._close_inherited)
        work = Work(request, started.pid, started.pipe, deadline)
        self._works[work.pid] = work
        self._selector.register(started.pipe, selectors.EVENT_READ, lambda events: self._listen_to(work))
        return work

    # Children ------------------------------------------------------------------------------------------------------

    def _listen_to(self, work: Work) -> None:
        """Take what a child says. A run's first byte answers those who wait for its start."""
        while work.pipe is not None:
            try:
                data = os.read(work.pipe, 65_536)
            except BlockingIOError:
                break
            if not data:
                self._selector.unregister(work.pipe)
                os.close(work.pipe)
                work.pipe = None
            work.said += data
        if work.is_run and child.LOCKED in work.said:
            self._answer(work, {"result": {"pid": work.pid}})

    def _reap(self, work: Work) -> None:
        """Notice the end of a child, or end one that takes too long."""
        pid, status = os.waitpid(work.pid, os.WNOHANG)
        if pid:
            self._end(work, status)
        elif work.deadline is not None and time.monotonic() > work.deadline:
            os.kill(work.pid, signal.SIGKILL)
            work.deadline = None
        elif work.is_measurement and not any(connection.is_open for connection, _identity in work.waiting):
            work.interrupt()  # the server that wanted it is gone

    def _end(self, work: Work, status: int) -> None:
        self._listen_to(work)
        if work.pipe is not None:  # a grandchild still has it
            self._selector.unregister(work.pipe)
            os.close(work.pipe)
            work.pipe = None
        del self._works[work.pid]
        if isinstance(work.request, wire.Start):
            self._note_exit(work.request, status)
            self._answer(work, wire.error("not started", _how_it_ended(_("The run's process"), status)))
        else:
            self._answer(work, self._final_answer(work, status))

    def _note_exit(self, request: wire.Start, status: int) -> None:
        try:
            RunFolder(request.folder).write_exit(request.attempt, status)
        except OSError as problem:  # the folder is gone or the disk is full: the lock still tells that it ended
            _log(f"no exit file for {request.folder}: {problem}")

    def _final_answer(self, work: Work, status: int) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(work.said)
        except ValueError:
            if work.is_interrupted:
                return _interrupted()
            return wire.error("unavailable", _how_it_ended(_("The process that was asked"), status))
        if "result" in answer and not isinstance(work.request, wire.Predict | wire.Measure):
            self._answers[_key(work.request)] = answer
            while len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)
        return answer

    def _answer(self, work: Work, answer: dict[str, Any]) -> None:
        for connection, identity in work.waiting:
            self._send(connection, {"id": identity, **answer})
        work.waiting.clear()


def _key(request: wire.Request) -> str:
    """Equal for questions with equal answers: of a config, only model and width shape the net."""
    if isinstance(request, wire.Describe):
        fields = {name: request.config.get(name) for name in ("model", "width")}
        return json.dumps([fields, request.image_shape, request.num_classes])
    return request.model_dump_json(exclude={"id"})


def _interrupted() -> dict[str, Any]:
    return wire.error("interrupted", _("Nothing is measured while a run is on."))


def _how_it_ended(who: str, wait_status: int) -> str:
    code = os.waitstatus_to_exitcode(wait_status)
    if code < 0:
        return _("{who} was ended by signal {number}.").format(who=who, number=-code)
    return _("{who} ended with exit status {code}.").format(who=who, code=code)


def _log(line: str) -> None:
    sys.stderr.write(f"{now()} {line}\n")
    sys.stderr.flush()


def prepare_environment(home: Path) -> None:
    """Settings that must stand before numpy is imported, and what runs inherit."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # else numpy starts threads when it is imported
    os.environ["RUNOFF_HOME"] = str(home)
    os.environ.pop("RUNOFF_TOKEN", None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.host", description="Starts runs for Runoff's server.")
    parser.add_argument("--home", type=Path, required=True, help="the folder that holds everything Runoff writes")
    home = parser.parse_args(arguments).home.resolve()
    prepare_environment(home)
    return Host(home).serve()
