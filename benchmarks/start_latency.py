"""From a request to the first optimizer step: a warm trainer host against a cold ``python -m trainer``.

Starts a server on a temporary home, trains ``fc`` on the built-in ``digits``, and prints the median, both ends, and the
ratio of the two ways. Also prints how long the server takes to its first answer, and its memory.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from app.client import Client
from app.executors.local import LocalExecutor
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


def wait(condition: Any) -> Any:
    """What the condition returns as soon as it is true."""
    while not (found := condition()):
        time.sleep(0.01)
    return found


def serve(home: Path) -> tuple[subprocess.Popen[bytes], Client, float]:
    """A server, its client, and the seconds to its first answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}")
    environment = {**os.environ, "RUNOFF_HOME": str(home), "RUNOFF_PORT": str(port)}
    begin = time.monotonic()
    server = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment, stdout=subprocess.DEVNULL)
    wait(client.is_up)
    return server, client, time.monotonic() - begin


def warm(client: Client, home: Path, seed: int) -> float:
    """Seconds from the begin of ``POST /runs`` to step 1."""
    begin = time.time()
    run_id = client.start_run(**CONFIG, seed=seed)["id"]
    stepped: float = wait(lambda: first_step(RunFolder(home / "runs" / run_id)))
    wait(lambda: client.run(run_id)["status"] == "finished")
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
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        server, client, seconds = serve(home)
        try:
            print(f"server start to first answer: {seconds:.2f} s")
            wait(lambda: client.run(client.start_run(**CONFIG)["id"]))
            wait(lambda: not client.runs(status="queued")["total"] + client.runs(status="running")["total"])
            warm_median = report(
                "POST /runs to step 1, warm host", [warm(client, home, seed) for seed in range(NUM_RUNS)]
            )
            memory = psutil.Process(server.pid).memory_info().rss / 2**20
            print(f"memory of the web process: {memory:.0f} MB")
        finally:
            client.close()
            server.terminate()
            server.wait()
        cold_median = report("python -m trainer to step 1", [cold(home) for _number in range(NUM_COLD)])
        print(f"ratio: a cold start takes {cold_median / warm_median:.1f} times as long")
        LocalExecutor(home).end_host()


if __name__ == "__main__":
    main()
