"""A backup of a home whose run trains: restored elsewhere, the run ends with the same bits as the original."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.results import results
from tests.faults.servers import BASE, Server, wait_for
from trainer.run_folder import iter_valid_events

pytestmark = pytest.mark.faults
EPOCHS = 50


def command(home: Path, *arguments: object) -> None:
    environment = {**os.environ, "RUNOFF_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "app.cli", *map(str, arguments)], env=environment, check=True)


@pytest.mark.full
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
        wait_for(lambda: {done, run} <= {each["id"] for each in other.client.runs(limit=1000)["runs"]})
        assert other.client.run(done) == server.client.run(done)
        ended = other.wait_status(run, "finished", "failed")
        assert (ended["status"], ended["attempt"]) == ("finished", 2)
        assert other.epochs(run) == server.epochs(run) == [*range(1, EPOCHS + 1)]
        assert results(other.folder(run)) == results(server.folder(run))
    finally:
        other.close()
