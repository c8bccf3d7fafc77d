"""How long 10,000 run folders take to be indexed, and pages meanwhile: ``python -m benchmarks.many_folders``.

One real run (``fc`` on ``digits``, 5 epochs, 360 test images) is trained and copied. A server is started without an index
on the copies, then asked to rebuild its index; both times requests are sent one after the other until all runs are in.
``--quick`` copies 300 folders, with no claim about time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

from app.cli.client import Client
from benchmarks.product import serving
from trainer.files import read_sealed, write_sealed
from trainer.run_folder import RunFolder, new_id, now

FOLDERS, QUICK_FOLDERS, REPEATS = 10_000, 300, 3
PAUSE_SECONDS = 0.05  # between two requests
REQUESTS = {
    "runs page": ("GET", "/runs"),
    "run page": ("GET", "/runs/{run}"),
    "form": ("GET", "/runs/new"),
    "list of 100 runs (API)": ("GET", "/api/v1/runs?limit=100"),
    "change of a run (API)": ("PATCH", "/api/v1/runs/{run}"),
}


def train(home: Path) -> RunFolder:
    """A finished run of 5 epochs."""
    command = [sys.executable, "-m", "trainer", "--dataset", "digits", "--model", "fc", "--epochs", "5"]
    subprocess.run(command, env={**os.environ, "RUNOFF_HOME": str(home)}, check=True, stdout=subprocess.DEVNULL)
    [path] = (home / "runs").iterdir()
    return RunFolder(path)


def copy(run: RunFolder) -> None:
    """A run of the same content. Large files are not copied, but linked: reading them costs the same."""
    folder = RunFolder(run.path.with_name(new_id()))
    for path in sorted(run.path.rglob("*")):
        target = folder.path / path.relative_to(run.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.name != "run.json":
            os.link(path, target)
    record = read_sealed(run.path / "run.json") or {}
    write_sealed(folder.path / "run.json", record | {"id": folder.id, "created_at": now()})


def ask(client: Client, run: str, seconds: dict[str, list[float]], end: threading.Event) -> None:
    """Send requests one after the other until ``end`` is set."""
    http = client._http
    while not end.wait(PAUSE_SECONDS):
        for name, (method, path) in REQUESTS.items():
            begin = time.perf_counter()
            body = {"notes": str(begin)} if method == "PATCH" else None
            answer = http.request(
                method, client.url + path.format(run=run), json=body, headers={"Accept": "text/html,application/json"}
            )
            seconds[name].append(time.perf_counter() - begin)
            answer.raise_for_status()


def index(home: Path, num_folders: int) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds until all folders are in the index, at a start and by a rebuild; and the seconds of requests meanwhile."""
    (home / "runoff.sqlite3").unlink(missing_ok=True)
    took: dict[str, float] = {}
    seconds: dict[str, list[float]] = defaultdict(list)
    begin = time.monotonic()
    with serving(home) as server:
        while not (runs := server.client.runs(limit=1)["runs"]):
            time.sleep(0.1)
        for way in ("start", "rebuild"):
            end = threading.Event()
            asking = threading.Thread(target=ask, args=(server.client, runs[0]["id"], seconds, end))
            asking.start()
            if way == "start":
                while server.client.runs(limit=1)["total"] < num_folders:
                    time.sleep(0.2)
            else:
                begin = time.monotonic()
                server.client.call("POST", "/reindex", timeout=None)
            took[way] = time.monotonic() - begin
            end.set()
            asking.join()
    return took, seconds


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_FOLDERS} folders, once")
    quick = parser.parse_args().quick
    num_folders, repeats = (QUICK_FOLDERS, 1) if quick else (FOLDERS, REPEATS)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        run = train(home)
        for _number in range(num_folders - 1):
            copy(run)
        took: dict[str, list[float]] = defaultdict(list)
        seconds: dict[str, list[float]] = defaultdict(list)
        for _repeat in range(repeats):
            of_index, of_requests = index(home, num_folders)
            for way, value in of_index.items():
                took[way].append(value)
            for name, values in of_requests.items():
                seconds[name] += values
    out = sys.stdout
    out.write(f"{num_folders:,} folders of 5 epochs, {repeats} times, in s\n")
    for way, values in took.items():
        out.write(f"{way}: median {statistics.median(values):.1f}, longest {max(values):.1f}\n")
    out.write("meanwhile, in ms\n| request | number | median | 95th percentile | longest |\n|---|---|---|---|---|\n")
    for name, values in seconds.items():
        high = sorted(values)[int(0.95 * len(values))]
        shown = [f"{1000 * value:.0f}" for value in (statistics.median(values), high, max(values))]
        out.write(f"| {name} | {len(values):,} | {' | '.join(shown)} |\n")


if __name__ == "__main__":
    main()
