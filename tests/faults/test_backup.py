"""A backup of a home whose run trains: restored elsewhere, the run ends with the same bits as the original."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.runs.executors.local import LocalExecutor
from tests.faults.test_faults import BASE, Server, server
from trainer.run_folder import iter_valid_events, read_json, sha256

__all__ = ["server"]
pytestmark = pytest.mark.faults
EPOCHS = 40


def command(home: Path, *arguments: object) -> None:
    environment = {**os.environ, "RUNOFF_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "app.cli", *map(str, arguments)], env=environment, check=True)


def test_a_run_restored_from_the_middle_of_its_training_ends_the_same(server: Server, tmp_path: Path) -> None:
    done, run = (server.begin(**BASE, seed=seed, epochs=epochs) for seed, epochs in ((1, 1), (2, EPOCHS)))
    server.wait_status(done, "finished")
    server.wait_epochs(run, 2)
    command(server.home, "backup", tmp_path / "made")
    copied = [event["type"] for event, _end in iter_valid_events(tmp_path / "made" / "runs" / run / "events.jsonl")]
    assert 2 <= copied.count("epoch") < EPOCHS
    assert "finished" not in copied
    server.wait_status(run, "finished")
    command(tmp_path / "restored", "restore", tmp_path / "made")
    other = Server(tmp_path / "restored")
    try:
        assert other.client.run(done) == server.client.run(done)
        ended = other.wait_status(run, "finished", "failed")
        assert (ended["status"], ended["attempt"]) == ("finished", 2)
        assert other.epochs(run) == server.epochs(run) == [*range(1, EPOCHS + 1)]
        assert results(other, run) == results(server, run)
    finally:
        other.client.close()
        other.process.terminate()
        other.process.wait()
        LocalExecutor(other.home).end_host()


def results(server: Server, run: str) -> dict[str, Any]:
    """The hashes of all tensors and predictions, and the counters. Which losses are still to be reported is up to the clock."""
    folder = server.folder(run)
    files = [*folder.checkpoints.glob("*.safetensors"), *folder.predictions.glob("*")]
    counters = {path.name: read_json(path) or {} for path in folder.checkpoints.glob("*.json")}
    for values in counters.values():
        del values["pending_losses"]
    return {path.relative_to(folder.path).as_posix(): sha256(path) for path in files} | counters
