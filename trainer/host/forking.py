"""The host's children: how a process is started for a request, and what it does there.

On Linux a child is forked from the host, which has torch imported but ran no kernel; where fork is not safe it is
spawned and imports torch itself. Either way it speaks through a pipe: a run sends one byte when it holds its lock,
a question sends its answer as JSON.
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

LOCKED = b"L"
OOM_SCORE = 500  # of at most 1,000: the kernel takes a run before the host and the server
QUESTION_SECONDS = 60  # a question's process ends itself after so long, even if the host is gone
MEASURE_SECONDS = 120  # likewise
NICENESS = 10  # of a measurement, so that pages are answered as ever
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)  # what the host handles

Execute = Callable[
    ..., int
]  # (folder, attempt, *, num_threads, on_locked, device) -> exit status, as trainer.runtime.execute


@dataclass(frozen=True)
class Child:
    """A started process and the end of the pipe on which it speaks."""

    pid: int
    pipe: int  # file descriptor, non-blocking


def fork(request: Request, execute: Execute, close_inherited: Callable[[], None]) -> Child:
    """Start a child for ``request`` by fork. ``close_inherited`` closes there what belongs to the host."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none may reach the host's handlers in the child
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
    """Start a child for ``request`` in a new interpreter; the request is its standard input."""
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
    """The life of a child: a session of its own, nothing of the host's, the work, and out without cleaning up."""
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
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def perform(request: Request, execute: Execute, pipe: int) -> int:
    """Do what ``request`` asks, speaking on ``pipe``; the exit status."""
    if isinstance(request, Start):
        return _run(request, execute, pipe)
    if isinstance(request, Measure):
        os.nice(NICENESS)
        _score_for_oom(2 * OOM_SCORE)
    signal.alarm(MEASURE_SECONDS if isinstance(request, Measure) else QUESTION_SECONDS)
    with os.fdopen(pipe, "wb") as file:
        file.write(json.dumps(answer(request)).encode())
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
        with contextlib.suppress(OSError):  # the host may be gone: the run does not need it
            os.write(pipe, LOCKED)
        os.close(pipe)

    return execute(folder, request.attempt, num_threads=request.num_threads, on_locked=on_locked, device=request.device)


def _score_for_oom(score: int) -> None:
    """How soon the kernel takes this process when memory runs out, 0 to 1,000."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(score))


def _write_lines_at_once() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def answer(request: Request) -> dict[str, Any]:
    """The answer to a question: ``{"result"}``, or ``{"error"}`` where what was asked can't be answered."""
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
    """A spawned child: the pipe's descriptor is the argument, the request the standard input."""
    from trainer import runtime

    request = parse_request(sys.stdin.buffer.read())
    _in_child(request, runtime.execute, int(sys.argv[1]), [])


if __name__ == "__main__":
    main()
