"""Make the test data ``tests/data/home-VERSION.tar.xz``: ``taskset -c 0 python scripts/make_old_home.py TARGET``.

Run it in the root of a checkout of that version: the version found in the current folder makes the home. It starts a
server on an empty home, trains small runs on the digits, and interrupts three more runs: their processes are stopped
after the first epoch while the server answers, and killed after the server has ended, as in a power cut. Only one CPU
core is used, so that the stored number of threads is 1.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

DIGITS = {"dataset": "digits", "precision": "float32", "device": "cpu"}
CNN = {**DIGITS, "model": "cnn", "epochs": 3, "batch_size": 16, "optimizer": "adam", "learning_rate": 0.002}
VGG = {
    **DIGITS,
    "model": "vgg",
    "width": 2,
    "epochs": 3,
    "batch_size": 32,
    "learning_rate": 0.05,
    "schedule": "one_cycle",
    "train_fraction": 0.4,
    "augmentation": "crop_flip",
}
RUNS: dict[str, dict[str, Any]] = {
    "fc": {**DIGITS, "model": "fc", "epochs": 3, "batch_size": 16, "learning_rate": 0.02},
    "cnn": CNN,
    "vgg": VGG,
    "vgg in bfloat16": {**VGG, "precision": "bfloat16", "momentum": 0},
}
SEEDS = {"fc": 2, "cnn": 2}
INTERRUPTED = ("cnn", "vgg", "vgg in bfloat16")
KEPT_CHECKPOINTS = {"cnn", "vgg", "vgg in bfloat16"}
CHILD = """
import os, signal, sys, json
from functools import partial
from pathlib import Path
from trainer import runtime
from trainer.config import parse_config
from trainer.run_folder import EventWriter, RunFolder

write = EventWriter.write
def write_and_stand_still(self, event, **extra):
    line = write(self, event, **extra)
    if line["type"] == "epoch" and line["epoch"] == 1:
        print("stopped", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    return line
EventWriter.write = write_and_stand_still

config, warnings = parse_config(json.loads(sys.argv[1]))
folder = RunFolder.claim(Path(os.environ["RUNOFF_HOME"]) / "runs", config)
print(folder.id, flush=True)
runtime.execute(folder, 1, num_threads=1, on_locked=partial(folder.announce, name=sys.argv[2], warnings=warnings))
"""


def main() -> None:
    target = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        home, answers = root / "home", root / "answers"
        answers.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {k: v for k, v in os.environ.items() if k != "RUNOFF_DATASETS"}
        environment |= {"RUNOFF_HOME": str(home), "RUNOFF_PORT": str(port), "RUNOFF_MEASURE": "false"}
        server = subprocess.Popen([sys.executable, "-m", "app.cli", "serve"], env=environment)
        children = []
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=60, trust_env=False) as api:
                wait_until_up(api)
                ids = {name: finished(api, name) for name in RUNS}
                for name in INTERRUPTED:
                    child, run_id = interrupted(name, environment)
                    children.append(child)
                    ids[f"{name} interrupted"] = [run_id]
                wait_until_indexed(api, [run for runs in ids.values() for run in runs])
                keep_answers(api, ids, answers)
        finally:
            server.terminate()
            server.wait(60)
            for child in children:
                child.send_signal(signal.SIGKILL)
                child.wait()
        (answers / "runs.txt").write_text("".join(f"{run} {name}\n" for name, runs in ids.items() for run in runs))
        (answers / "machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
        leave_out(home, ids)
        with tarfile.open(target, "w:xz", preset=9) as archive:
            for path in sorted(root.rglob("*")):
                archive.add(path, path.relative_to(root).as_posix(), recursive=False, filter=nobody)
        sys.stdout.write(f"{target}: {target.stat().st_size:,} bytes\n")


def wait_until_up(api: httpx.Client) -> None:
    for _try in range(600):
        try:
            if api.get("/devices").is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    sys.exit("the server does not answer")


def finished(api: httpx.Client, name: str) -> list[str]:
    """The ids of runs of this configuration, once they have ended."""
    sweep = {
        "base": RUNS[name],
        "repeats": SEEDS.get(name, 1),
        "name": name,
        "tags": ["old"],
        "notes": f"{name}, finished",
    }
    ids = [run["id"] for run in api.post("/sweeps", json=sweep).raise_for_status().json()["runs"]]
    while (statuses := {api.get(f"/runs/{run}").json()["status"] for run in ids}) != {"finished"}:
        assert "failed" not in statuses, statuses
        time.sleep(0.2)
    return ids


def interrupted(name: str, environment: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    """A process that stands still after the first epoch, and its run's id."""
    command = [sys.executable, "-c", CHILD, json.dumps(RUNS[name]), f"{name} interrupted"]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    run_id = child.stdout.readline().strip()
    assert child.stdout.readline().strip() == "stopped"
    return child, run_id


def wait_until_indexed(api: httpx.Client, ids: list[str]) -> None:
    while not all(api.get(f"/runs/{run}").is_success and api.get(f"/runs/{run}").json()["epochs_done"] for run in ids):
        time.sleep(0.2)


def keep_answers(api: httpx.Client, ids: dict[str, list[str]], folder: Path) -> None:
    """What programs are answered, one file each, with a list of the addresses."""
    fc, cnn, vgg = ids["fc"], ids["cnn"], [*ids["vgg"], *ids["vgg in bfloat16"]]
    everything = [run for runs in ids.values() for run in runs]
    sets: dict[str, dict[str, Any]] = {
        "two": {"run": [fc[0], cnn[0]], "accuracy": 0.5, "classes": True},
        "recipes": {"run": [*fc, *cnn], "at": "best", "base": fc[0], "margin": 0.01},
        "vgg": {"run": vgg, "at": "1"},
        "interrupted": {"run": [cnn[0], *ids["cnn interrupted"]]},
        "everything": {"run": everything},
    }
    addresses: dict[str, tuple[str, Any]] = {"runs.json": ("/runs", {"limit": 100})}
    for name, query in sets.items():
        addresses[f"compare-{name}.json"] = ("/compare", query)
        runs_only = {key: value for key, value in query.items() if key not in ("accuracy", "classes")}
        addresses[f"pairs-{name}.csv"] = ("/compare/pairs.csv", runs_only)
        addresses[f"epochs-{name}.csv"] = ("/compare/epochs.csv", {"run": query["run"]})
    for run in everything:
        addresses[f"epochs-{run}.json"] = (f"/runs/{run}/epochs", {})
    for name, (path, query) in addresses.items():
        answer = api.get(path, params=query).raise_for_status()
        (folder / name).write_bytes(answer.content)
        addresses[name] = (answer.request.url.raw_path.decode(), None)
    (folder / "addresses.json").write_text(
        json.dumps({name: url for name, (url, _none) in addresses.items()}, indent=1)
    )


def machine() -> dict[str, str]:
    """What must be the same for another process to calculate the same bits, beside what environment.json holds."""
    import numba

    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return {"numba": numba.__version__, "flags": " ".join(sorted(flags.split()[2:]))}


def leave_out(home: Path, ids: dict[str, list[str]]) -> None:
    """Remove what no test needs: the data sets, pictures, checkpoints of runs that are never resumed or compared."""
    kept = {ids[name][0] for name in KEPT_CHECKPOINTS} | {
        run for name, runs in ids.items() if "interrupted" in name for run in runs
    }
    for path in home.iterdir():
        if path.name not in ("runs", "runoff.sqlite3"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for run in (home / "runs").iterdir():
        for name in ("pictures", "lock", "stop"):
            path = run / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        checkpoints = sorted((run / "checkpoints").iterdir())
        last = checkpoints[-1].stem
        for path in checkpoints:
            if run.name not in kept or path.stem != last:
                path.unlink()


def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
