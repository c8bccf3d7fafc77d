"""Start a child process for a request, and handle the request in it.

On Linux a child is forked from the host, which has imported torch but has run no kernel. Where fork is not safe, a child
is spawned and imports torch itself. Either way it writes to a pipe: the process of a run writes one byte when it holds
the lock of the run folder, and any other child writes its response as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from trainer.interpreter import python_command
from trainer.run_folder import RunFolder
from trainer.wire import Describe, Devices, Measure, Predict, Request, Start, error, parse_request

LOCKED = b"L"  # written by the process of a run once it holds the lock
OOM_SCORE = 500  # of at most 1,000: out of memory, the kernel kills a run before the host and the server
QUERY_SECONDS = 60  # after which the child of a query ends itself, even if the host has exited
MEASURE_SECONDS = 120  # after which the child of a measurement does
NICENESS = 10  # of a measurement, so that the server stays responsive
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)  # those that the host handles

Execute = Callable[
    ..., int
]  # (folder, attempt, *, num_threads, on_locked, device) -> exit status, like trainer.runtime.execute


@dataclass(frozen=True)
class Child:
    """A process that was started."""

    pid: int
    pipe: int  # file descriptor from which its output is read, non-blocking


def fork(request: Request, execute: Execute, close_inherited: Callable[[], None]) -> Child:
    """Fork a child for ``request``. The child calls ``close_inherited`` to close the host's sockets and pipes.

    Raises ``OSError`` if no process or file descriptor is free.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # or the child could run the host's handlers
    try:
        pid = os.fork()
        if pid == 0:
            _in_child(request, execute, writing, [close_inherited, lambda: os.close(reading)])
    except OSError:
        os.close(reading)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(writing)
    os.set_blocking(reading, False)
    return Child(pid, reading)


def spawn(request: Request) -> Child:
    """Start a child for ``request`` in a new interpreter, which reads the request from its standard input.

    Raises ``OSError`` if no process or file descriptor is free.
    """
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        with tempfile.TemporaryFile() as file:
            file.write(request.model_dump_json().encode())
            file.seek(0)
            command = python_command("trainer.host.forking", str(writing))
            actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 0)]
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    os.set_blocking(reading, False)
    return Child(pid, reading)


def _in_child(request: Request, execute: Execute, pipe: int, prepare: list[Callable[[], None]]) -> NoReturn:
    """Handle ``request`` in a new session and exit, without the interpreter's cleanup.

    The host's signal handlers are removed, and the steps of ``prepare`` are called first.
    """
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for step in prepare:
            step()
        code = perform(request, execute, pipe)
    except BaseException:
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def perform(request: Request, execute: Execute, pipe: int) -> int:
    """Handle ``request``, write the result to ``pipe``, and return the exit status."""
    if isinstance(request, Start):
        return _run(request, execute, pipe)
    if isinstance(request, Measure):
        os.nice(NICENESS)
        _score_for_oom(2 * OOM_SCORE)
    signal.alarm(MEASURE_SECONDS if isinstance(request, Measure) else QUERY_SECONDS)
    with os.fdopen(pipe, "wb") as file:
        file.write(json.dumps(respond(request)).encode())
    return 0


def _run(request: Start, execute: Execute, pipe: int) -> int:
    folder = RunFolder(request.folder)
    log = os.open(folder.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    _write_lines_at_once()
    _score_for_oom(OOM_SCORE)

    def on_locked() -> None:
        with contextlib.suppress(OSError):  # the host may have exited; the run continues without it
            os.write(pipe, LOCKED)
        os.close(pipe)

    return execute(folder, request.attempt, num_threads=request.num_threads, on_locked=on_locked, device=request.device)


def _score_for_oom(score: int) -> None:
    """Set how soon the kernel kills this process when memory runs out: 0 to 1,000, the highest first."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(score))


def _write_lines_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def respond(request: Request) -> dict[str, Any]:
    """The response to any request other than ``Start``: ``{"result"}``, or ``{"error"}`` if the request is not valid."""
    from trainer.config import parse_config
    from trainer.failures import RunError
    from trainer.home import home
    from trainer.host import describe, measure, predict

    try:
        match request:
            case Describe():
                channels, height, width = request.image_shape
                config, _warnings = parse_config(request.config)
                return {"result": describe.describe(config, (channels, height, width), request.num_classes)}
            case Devices():
                return {"result": describe.devices()}
            case Predict():
                return {"result": predict.predict(RunFolder(request.folder), request.epoch, request.image)}
            case Measure():
                channels, height, width = request.image_shape
                config, _warnings = parse_config(request.config)
                entry = measure.measure(
                    home(),
                    request.section,
                    request.key,
                    config,
                    (channels, height, width),
                    request.num_classes,
                    num_threads=request.num_threads,
                    device=request.device,
                )
                return {"result": entry}
    except (ValueError, FileNotFoundError, RunError) as problem:
        return error("invalid", str(problem))
    raise AssertionError(request)


def main() -> NoReturn:
    """Run a spawned child. The file descriptor of its pipe is the argument, and its standard input the request."""
    from trainer import runtime

    request = parse_request(sys.stdin.buffer.read())
    _in_child(request, runtime.execute, int(sys.argv[1]), [])


if __name__ == "__main__":
    main()
