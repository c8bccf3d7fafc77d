"""Every call by which the server changes a file of its home fails in turn, or is the last one before a kill.

A small library counts the calls of a forked server, those of SQLite included. For each of them a server on a copy of the
same home meets a fault there. After a restart without a fault, index and folders must agree, what was refused must not
be done, and what was accepted must be.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.runs import starting
from tests.faults.conftest import Count
from tests.faults.server_calls import SWEEP, Servers
from trainer.config import parse_config
from trainer.run_folder import RunFolder

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler"),
]
FAULTS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "kill -9": -1}
SOURCE = Path(__file__).with_name("fail_calls.c")
OLD_HOME = Path(__file__).parents[1] / "data" / "home-0.1.0.tar.xz"
QUICK = 3  # commands for each fault, with one call each


@dataclass
class Case:
    """A command on a copy of ``home``, the number of its calls, and what is shown before and after it."""

    name: str
    home: Path
    requests: list[Any]
    count: int = 0
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)

    @property
    def is_start(self) -> bool:
        return not self.requests


@dataclass
class Lab:
    """Where the tries are made."""

    servers: Servers
    folder: Path

    def copy(self, home: Path) -> Path:
        """A fresh copy of a home. Times of files stay, as the index compares them."""
        target = self.folder / "try"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(home, target, copy_function=shutil.copy2)
        return target

    def serve(self, home: Path, case: Case, number: int = -1, error: int = 0) -> dict[str, Any]:
        return self.servers.run(
            home, do="serve", at_start=case.is_start, requests=case.requests, number=number, error=error
        )

    def look(self, home: Path) -> dict[str, Any]:
        return self.servers.run(home, do="look")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    shared = Path("/dev/shm")  # where a sync costs nothing
    folder = Path(tempfile.mkdtemp(prefix="calls-", dir=shared if shared.is_dir() else tmp_path_factory.getbasetemp()))
    library = tmp_path_factory.mktemp("library") / "fail_calls.so"  # a shared memory may not hold programs
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    with Servers(library) as process:
        yield Lab(process, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cases(lab: Lab) -> list[Case]:
    """All commands."""
    home = lab.folder / "home"
    runs = [_new_run(home, seed) for seed in range(4)]
    queued, cancelled, deleted, _other = (folder.id for folder in runs)
    first = Case(
        "", home, [("POST", f"/api/v1/runs/{cancelled}/cancel", None), ("DELETE", f"/api/v1/runs/{deleted}", None)]
    )
    lab.look(home)  # indexes the runs
    assert lab.serve(home, first)["statuses"] == [202, 204]
    archive = _archive(lab.folder / "images.zip")
    return [
        Case("start a run", home, [("POST", "/api/v1/runs", {"dataset": "digits", "model": "fc", "seed": 9})]),
        Case("start a sweep", home, [("POST", "/api/v1/sweeps", SWEEP)]),
        Case("change", home, [("PATCH", f"/api/v1/runs/{queued}", {"name": "new", "tags": ["one"]})]),
        Case("archive", home, [("PATCH", f"/api/v1/runs/{queued}", {"archived": True})]),
        Case("cancel", home, [("POST", f"/api/v1/runs/{queued}/cancel", None)]),
        Case("resume", home, [("POST", f"/api/v1/runs/{cancelled}/resume", None)]),
        Case("delete", home, [("DELETE", f"/api/v1/runs/{queued}", None)]),
        Case("restore", home, [("POST", f"/api/v1/runs/{deleted}/restore", None)]),
        Case("reindex", home, [("POST", "/api/v1/reindex", None)]),
        Case("import", home, [("POST", "/api/v1/datasets", {"name": "squares", "upload": str(archive)})]),
        Case("start of a server", _with_leftovers(lab.folder / "work", home), []),
        Case("start on a new home", _empty(lab.folder / "new"), []),
        Case("start on an old home", _old(lab.folder / "old"), []),
    ]


def _measure(lab: Lab, case: Case) -> None:
    """Count the calls of a command without a fault, and note what is shown before and after it."""
    case.before = lab.look(lab.copy(case.home))["shown"]
    target = lab.copy(case.home)
    served = lab.serve(target, case)
    assert all(status < 400 for status in served["statuses"]), (case.name, served)
    looked = lab.look(target)
    case.count, case.after = served["count"], looked["shown"]
    assert not looked["differs"], (case.name, looked["differs"])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_call_of_the_server_leaves_nothing_half_done(
    lab: Lab, cases: list[Case], fault: str, full: bool, chance: random.Random, count: Count
) -> None:
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for case in cases if full else chance.sample(cases, QUICK):
        if not case.count:
            _measure(lab, case)
        numbers = range(case.count) if full else [chance.randrange(case.count)]
        for number in numbers:
            outcome, problems = _suffer(lab, case, number, FAULTS[fault])
            outcomes[outcome] += 1
            wrong += [f"{fault} at call {number} of {case.name}, {outcome}: {problem}" for problem in problems]
    ends = ", ".join(f"{outcome} {times}" for outcome, times in outcomes.most_common())
    count(f"file operation of the server: {fault}", outcomes.total(), f"{len(wrong)} wrong; {ends}")
    assert not wrong, "\n".join(wrong)


def _suffer(lab: Lab, case: Case, number: int, error: int) -> tuple[str, list[str]]:
    """One server that meets the fault, one that starts after it. The outcome, and what is wrong."""
    home = lab.copy(case.home)
    served = lab.serve(home, case, number, error)
    statuses = served.get("statuses")
    if error < 0:
        outcome = "killed" if served["exit"] == -9 else f"ended with {served['exit']}"
    elif served.get("refused_start"):
        outcome = "start refused"
    elif statuses is None:
        outcome = f"ended with {served['exit']}"
    else:
        outcome = "refused" if any(status >= 400 for status in statuses) else "accepted"
    problems = []
    if outcome.startswith("ended"):
        problems.append(f"it ended unexpectedly: {served['log'][-600:]}")
    elif "Traceback" in served["log"]:
        problems.append(f"a traceback: {served['log'][-600:]}")
    if 500 in (statuses or []):
        problems.append(f"status 500: {served['text']}")
    looked = lab.look(home)
    if looked["exit"]:
        return outcome, [*problems, f"no restart: {looked['log'][-600:]}"]
    if "Traceback" in looked["log"]:
        problems.append(f"a traceback after the restart: {looked['log'][-600:]}")
    allowed = {"refused": [case.before], "accepted": [case.after]}.get(outcome, [case.before, case.after])
    if looked["shown"] not in allowed:
        problems.append(f"it shows {looked['shown']}")
    if looked["differs"]:
        problems.append(f"index and folders differ: {looked['differs'][0]}")
    if looked["left"]:
        problems.append(f"left behind: {looked['left']}")
    if set(looked["pages"]) != {200}:
        problems.append(f"pages answer {looked['pages']}")
    return outcome, problems


# Homes ---------------------------------------------------------------------------------------------------------------


def _new_run(home: Path, seed: int) -> RunFolder:
    config, _warnings = parse_config({"dataset": "digits", "model": "fc", "seed": seed})
    return RunFolder.create(home / "runs", config, name=f"run {seed}")


def _with_leftovers(home: Path, source: Path) -> Path:
    """A killed server was starting a sweep, removing a folder and receiving a file; and a deleted run is 31 days old."""
    shutil.copytree(source, home, copy_function=shutil.copy2)
    configs = [parse_config({"dataset": "digits", "model": "fc", "seed": seed})[0] for seed in (20, 21)]
    folders = [RunFolder.claim(home / "runs", config) for config in configs]

    def stop(_folder: RunFolder, **_labels: Any) -> None:
        raise KeyboardInterrupt

    labels = {"name": "late", "sweep": "0123456789"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "announce", stop)
        with pytest.raises(KeyboardInterrupt):
            starting.announce(home, "sweep", [(folder, labels) for folder in folders])
    (home / "runs" / ".deleted-1" / "checkpoints").mkdir(parents=True)
    (home / "uploads" / "1").mkdir(parents=True)
    (home / "uploads" / "1" / "images.zip").write_bytes(b"PK")
    old = _new_run(home, 30)
    (home / "trash").mkdir(exist_ok=True)
    old.path.rename(home / "trash" / old.id)
    os.utime(home / "trash" / old.id, (time.time() - 31 * 24 * 3600,) * 2)
    return home


def _empty(home: Path) -> Path:
    home.mkdir()
    return home


def _old(folder: Path) -> Path:
    """A home of version 0.1.0, whose index must be migrated."""
    folder.mkdir()
    with tarfile.open(OLD_HOME) as archive:
        archive.extractall(folder, filter="data")
    return folder / "home"


def _archive(path: Path) -> Path:
    """Two classes of a few small images."""
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(20):
            image = path.with_name(f"{number}.png")
            Image.fromarray(np.full((8, 8), number * 10, np.uint8)).save(image)
            archive.write(image, f"{('dark', 'light')[number // 10]}/{number}.png")
    return path
