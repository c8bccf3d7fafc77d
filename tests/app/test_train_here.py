"""``runoff train`` without a server: a real process trains here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.damage import damage_of
from trainer.event_log import read_log
from trainer.run_folder import RunFolder

pytestmark = pytest.mark.slow


def train(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RUNOFF_HOME": str(home)}
    command = [sys.executable, "-m", "app.cli", "train", "--local", "--dataset", "digits", "--model", "fc", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_is_trained_here(home: Path) -> None:
    process = train(home, "--epochs", "2", "--name", "here", "--tag", "first", "--tag", "tried")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    [folder] = [RunFolder(path) for path in (home / "runs").iterdir()]
    assert str(folder.path) in output
    assert damage_of(folder, full=True) == []
    record = folder.read_run() or {}
    assert (record["name"], record["tags"], folder.is_imported()) == ("here", ["first", "tried"], False)
    assert (read_log(folder.events_path).epochs, read_log(folder.events_path).has_end) == ([1, 2], True)


def test_a_killed_process_is_said(home: Path) -> None:
    process = train(home, "--epochs", "4000")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not read_log(_folder(home).events_path).epochs:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _output, errors = process.communicate(timeout=60)
    assert (process.returncode, "ended unexpectedly" in errors) == (1, True)
    assert "Traceback" not in errors
    assert damage_of(_folder(home)) == []


def _folder(home: Path) -> RunFolder:
    found = list((home / "runs").glob("*"))
    return RunFolder(found[0] if found else home / "runs" / "none")
