"""From a request to the first optimizer step: a warm trainer host against a cold ``python -m trainer``.

Starts a server on a temporary home, trains ``fc`` on the built-in ``digits``, and prints the median, both ends, and the
ratio of the two ways. Also prints how long the server takes to its first answer, and its memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from app.cli.client import Client
from benchmarks.product import finished, serving, wait
from trainer.run_folder import RunFolder, iter_valid_events

NUM_RUNS = 10
NUM_COLD = 3
CONFIG: dict[str, Any] = {"dataset": "digits", "model": "fc"}


def first_step(folder: RunFolder) -> float | None:
    """When the first step was done, in seconds since 1970."""
    for event, _end in iter_valid_events(folder.events_path):
        if event["type"] == "step":
            return datetime.fromisoformat(event["time"]).timestamp()
    return None


def warm(client: Client, home: Path, seed: int) -> float:
    """Seconds from the begin of ``POST /runs`` to step 1."""
    begin = time.time()
    run_id = client.start_run(**CONFIG, seed=seed)["id"]
    stepped = wait(lambda: first_step(RunFolder(home / "runs" / run_id)))
    assert stepped is not None
    finished(client, run_id)
    return stepped - begin


def cold(home: Path) -> float:
    """Seconds from the start of a training process to step 1."""
    before = set((home / "runs").iterdir())
    begin = time.time()
    command = [sys.executable, "-m", "trainer", "--dataset", "digits", "--model", "fc"]
    subprocess.run(command, env={**os.environ, "RUNOFF_HOME": str(home)}, check=True, stdout=subprocess.DEVNULL)
    [folder] = set((home / "runs").iterdir()) - before
    stepped = first_step(RunFolder(folder))
    assert stepped is not None
    return stepped - begin


def report(title: str, seconds: list[float]) -> float:
    """Print median and both ends; return the median."""
    median = statistics.median(seconds)
    print(f"{title}: median {median:.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s, n = {len(seconds)}")
    return median


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs, to see that it works")
    num_runs, num_cold = (2, 1) if parser.parse_args().quick else (NUM_RUNS, NUM_COLD)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        with serving(home) as server:
            print(f"server start to first answer: {server.start_seconds:.2f} s")
            finished(server.client, server.client.start_run(**CONFIG)["id"])
            warm_median = report(
                "POST /runs to step 1, warm host", [warm(server.client, home, seed) for seed in range(num_runs)]
            )
            memory = psutil.Process(server.pid).memory_info().rss / 2**20
            print(f"memory of the web process: {memory:.0f} MB")
        cold_median = report("python -m trainer to step 1", [cold(home) for _number in range(num_cold)])
        print(f"ratio: a cold start takes {cold_median / warm_median:.1f} times as long")


if __name__ == "__main__":
    main()
