"""Every system call by which a run saves fails, or is the last thing that its process does.

strace watches one attempt of a run and lists its calls that write, sync, rename, remove or create a file of the run
folder. Then a new run meets a fault at each of them. After that its folder must be whole, and the next attempt must
end with the same bits as a run without a fault.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.faults.attempts import Attempts
from tests.faults.conftest import Count
from tests.faults.results import ending, problems_of, results
from tests.faults.servers import wait_for
from trainer.config import parse_config
from trainer.run_folder import RunFolder


def can_trace() -> bool:
    """Whether strace is here and may trace, which a container may forbid."""
    command = ["strace", "--seccomp-bpf", "-f", "-e", "trace=fsync", "-o", "/dev/null", "true"]
    return (
        shutil.which("strace") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )


pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not can_trace(), reason="strace is not installed, or may not trace here"),
]

CALLS = (
    *("open", "openat", "creat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2"),
    *("ftruncate", "unlink", "unlinkat", "mkdir", "mkdirat"),
)
_CREATES = re.compile(r"^(open|openat|creat)\(.*O_CREAT")
FAULTS = {"error=ENOSPC": "the disk is full", "error=EIO": "the disk reports an error", "signal=KILL": "kill -9"}


@dataclass(frozen=True)
class Point:
    """The call number ``number`` of its name in an attempt. ``path`` is its file, within the run folder."""

    call: str
    number: int
    path: str

    def __str__(self) -> str:
        return f"{self.call} number {self.number} ({self.path})"


@dataclass
class Trial:
    """Attempts of equal runs, the points of one of them, and the results of one that met no fault."""

    attempts: Attempts
    runs: Path
    trace: Path
    points: list[Point] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)

    def new_run(self) -> RunFolder:
        config, _warnings = parse_config({"dataset": "digits", "model": "fc", "epochs": 3, "schedule": "cosine"})
        return RunFolder.create(self.runs, config)

    def run(self, folder: RunFolder, attempt: int, calls: str, *arguments: str) -> int:
        options = ["-y", "-s", "0", "-o", str(self.trace), "-e", f"trace={calls}", *arguments]
        return self.attempts.run(folder, attempt, strace=options)

    def calls(self, folder: RunFolder) -> Iterator[tuple[Point, str]]:
        """The traced calls on files of the run folder that change something, with their lines."""
        numbers: Counter[str] = Counter()
        for line in self.trace.read_text(errors="replace").splitlines():
            call = line.split("(")[0]
            numbers[call] += 1
            paths = re.findall(re.escape(str(folder.path)) + r"([^\">]*)", line)
            if paths and (call not in ("open", "openat", "creat") or _CREATES.match(line)):
                yield Point(call, numbers[call], re.sub(r"\.[0-9a-f]{8}\.tmp", ".tmp", paths[0])), line


@pytest.fixture(scope="module")
def trial(home: Path) -> Iterator[Trial]:
    with Attempts(home) as process:
        trial = Trial(process, home / "runs", home / "trace")
        trial.attempts.run(trial.new_run(), 1)
        data = [path.stat().st_mtime for path in home.glob("datasets/digits/*")]
        wait_for(lambda: time.time() > max(data) + 2)  # newer files are checked by each run
        trial.attempts.run(trial.new_run(), 1)
        folder = trial.new_run()
        assert trial.run(folder, 1, ",".join(f"?{call}" for call in CALLS)) == 0
        assert problems_of(folder) == []
        trial.points = [point for point, _line in trial.calls(folder)]
        trial.expected = results(folder)
        yield trial


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_call_costs_nothing(
    trial: Trial, fault: str, full: bool, chance: random.Random, count: Count
) -> None:
    points = trial.points if full else sorted(chance.sample(trial.points, 6), key=trial.points.index)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for point in points:
        folder = trial.new_run()
        outcome, problems = _suffer(trial, folder, point, fault)
        outcomes[outcome] += 1
        wrong += [f"{fault} at {point}, {outcome}: {problem}" for problem in problems]
        shutil.rmtree(folder.path)
    ends = ", ".join(f"{outcome} {times}" for outcome, times in outcomes.most_common())
    count(f"system call of a save: {FAULTS[fault]}", len(points), f"{len(wrong)} wrong; the attempt: {ends}")
    assert not wrong, "\n".join(wrong)


def _suffer(trial: Trial, folder: RunFolder, point: Point, fault: str) -> tuple[str, list[str]]:
    """One attempt that meets the fault, one that goes on. How the first one ended, and what is wrong."""
    trial.run(folder, 1, point.call, "-e", f"inject={point.call}:{fault}:when={point.number}")
    hit = [each for each, line in trial.calls(folder) if "INJECTED" in line or line.endswith("= ?")]
    problems = [] if [(each.call, each.number) for each in hit] == [(point.call, point.number)] else [f"it hit {hit}"]
    problems += [f"after it: {problem}" for problem in problems_of(folder)]
    end = ending(folder)
    outcome = end["type"] if end else "ended without a last line"
    if outcome == "failed":
        problems += [f"{end!r} is no sentence"] if end and not _is_sentence(end["message"]) else []
    if outcome != "finished":
        if (status := trial.attempts.run(folder, 2)) != 0:
            problems.append(f"the next attempt ended with status {status}")
        if (end := ending(folder)) is None or end["type"] != "finished":
            problems.append(f"the next attempt ended with {end}")
        problems += [f"at the end: {problem}" for problem in problems_of(folder)]
    found = results(folder)
    problems += [
        f"{name} differs"
        for name in sorted(found.keys() | trial.expected)
        if found.get(name) != trial.expected.get(name)
    ]
    return outcome, problems


def _is_sentence(text: str) -> bool:
    return re.fullmatch(r"[A-Z][^\[\]\n]*\.", text) is not None
