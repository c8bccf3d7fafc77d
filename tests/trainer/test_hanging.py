"""The sign of life of a training loop, and finding and killing the process that holds a lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.heartbeat import Heartbeat, silent_since
from trainer.lock_holder import end_holder, holder

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A lock, and the process that holds it."""
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_holder_of_a_lock_is_found(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = held
    assert holder(path) == process.pid


@pytest.mark.parametrize("is_stopped", [False, True])
def test_the_holder_is_killed(held: tuple[Path, subprocess.Popen[str]], is_stopped: bool) -> None:
    path, process = held
    if is_stopped:
        process.send_signal(signal.SIGSTOP)
    assert end_holder(path)
    assert process.wait(10) == -signal.SIGKILL
    assert holder(path) is None


def test_a_free_lock_needs_nobody_to_be_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert (holder(path), end_holder(path)) == (None, True)
    path.touch()
    assert (holder(path), end_holder(path)) == (None, True)


def test_a_holder_that_can_not_be_killed_is_said(
    held: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.lock_holder._kill", lambda _pid, _path: None)
    assert not end_holder(held[0], patience_seconds=0.1)


def test_a_silent_loop_seems_to_hang(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    assert silent_since(path) is None  # a version before heartbeats
    Heartbeat(path).beat()
    assert silent_since(path) is None
    os.utime(path, (time.time(), time.time() - 61))
    assert silent_since(path) == pytest.approx(time.time() - 61, abs=5)


def test_a_loop_with_slow_batches_is_given_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "heartbeat"
    clock = iter([0.0, 30.0, 31.0])
    monkeypatch.setattr("trainer.heartbeat.time.monotonic", lambda: next(clock))
    beating = Heartbeat(path)
    beating.beat()
    assert path.read_text() == "30.000\n"
    os.utime(path, (time.time(), time.time() - 599))
    assert silent_since(path) is None
    os.utime(path, (time.time(), time.time() - 601))
    assert silent_since(path) is not None


def test_it_writes_at_most_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "heartbeat"
    now = 100.0
    monkeypatch.setattr("trainer.heartbeat.time.monotonic", lambda: now)
    beating = Heartbeat(path)
    calls: list[Path] = []
    monkeypatch.setattr("trainer.heartbeat.os.utime", calls.append)
    for _step in range(1000):
        beating.beat()
        now += 0.01
    assert 8 <= len(calls) <= 11


def test_a_disk_that_refuses_ends_no_training(tmp_path: Path) -> None:
    beating = Heartbeat(tmp_path / "missing" / "heartbeat")
    beating.beat()
    assert silent_since(tmp_path / "missing" / "heartbeat") is None
