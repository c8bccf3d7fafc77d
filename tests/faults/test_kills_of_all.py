"""Server, trainer host and runs are killed in random order. Every run ends with the same bits as an undisturbed one."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.faults.conftest import Count
from tests.faults.results import ending, problems_of, reported_epochs, results
from tests.faults.servers import Server, lock_holder, wait_for
from tests.faults.test_kills import RECIPES
from trainer import wire
from trainer.event_log import read_log
from trainer.lock_holder import holder

pytestmark = [pytest.mark.faults, pytest.mark.full]

ACTIVE = 3  # runs at a time: two train, one waits
LONGEST_PAUSE_SECONDS = 0.6  # between two kills
TRUE_SECONDS = 5.0  # from the first response of a server until it shows the true state


@dataclass
class Killing:
    """The runs of a test, and what was done to them."""

    server: Server
    chance: random.Random
    recipes: list[dict[str, Any]]
    runs: list[tuple[str, int]] = field(default_factory=list)  # id, number of the recipe
    killed: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # until a restarted server showed the true state
    problems: list[str] = field(default_factory=list)
    epochs_at_kill: dict[str, int] = field(default_factory=dict)

    def fill(self) -> None:
        """Start runs until enough of them have not ended."""
        while sum(ending(self.server.folder(run)) is None for run, _recipe in self.runs) < ACTIVE:
            number = len(self.runs) % len(self.recipes)
            self.runs.append((self.server.begin(**self.recipes[number]), number))

    def processes(self) -> dict[str, int]:
        """The process of each run that is being trained."""
        found = {run: lock_holder(self.server.folder(run)) for run, _recipe in self.runs}
        return {run: pid for run, pid in found.items() if pid and ending(self.server.folder(run)) is None}

    def kill(self) -> None:
        """Kill one of the three, as soon as there is one."""
        what = self.chance.choice(["server", "host", "run"])
        before = self.processes()
        if what == "run":
            self._kill_run()
        elif what == "host":
            host = wait_for(lambda: holder(wire.lock_path(self.server.home, wire.code_version())))
            os.kill(host, signal.SIGKILL)
        else:
            self.server.kill()
            time.sleep(self.chance.uniform(0, LONGEST_PAUSE_SECONDS))
            self.server.start()
            begin = time.monotonic()
            wait_for(self._shows_the_truth)
            self.seconds.append(time.monotonic() - begin)
        self.killed[what] += 1
        if what != "run":
            now = self.processes()
            for run, pid in before.items():
                if ending(self.server.folder(run)) is None and now.get(run) != pid:
                    self.problems.append(f"run {run} did not outlive the {what}")

    def _kill_run(self) -> None:
        """Kill the process of a run that has had an epoch since the last time: three attempts without one are an end."""

        def victim() -> tuple[str, int] | None:
            for run, pid in self.processes().items():
                if len(reported_epochs(self.server.folder(run))) > self.epochs_at_kill.get(run, 0):
                    return run, pid
            self.fill()
            return None

        run, pid = wait_for(victim)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: lock_holder(self.server.folder(run)) != pid)
        self.epochs_at_kill[run] = len(reported_epochs(self.server.folder(run)))

    def _shows_the_truth(self) -> bool:
        """Whether each run that is being trained is shown as running, and each that has ended with its end."""
        for run, _recipe in self.runs:
            folder = self.server.folder(run)
            end, process = ending(folder), lock_holder(folder)
            shown = self.server.status(run)
            if (end is not None and shown != end["type"]) or (end is None and process and shown != "running"):
                return False
        return True


def test_server_host_and_runs_killed_in_any_order(
    server: Server, full: bool, chance: random.Random, count: Count
) -> None:
    kills, epochs = (100, 60) if full else (5, 20)
    killing = Killing(server, chance, [{**recipe, "epochs": epochs} for recipe in (RECIPES if full else RECIPES[:1])])
    undisturbed = [server.begin(**recipe) for recipe in killing.recipes]
    for run in undisturbed:
        assert server.wait_status(run, "finished", "failed")["status"] == "finished"
    for _kill in range(kills):
        killing.fill()
        time.sleep(chance.uniform(0, LONGEST_PAUSE_SECONDS))
        killing.kill()
    for run, number in killing.runs:
        killing.problems += _differences(server, run, undisturbed[number], epochs)
    kinds = ", ".join(f"{what} {times}" for what, times in killing.killed.most_common())
    slowest = f"true state after {max(killing.seconds, default=0):.1f} s (longest)"
    what = f"kill -9 of server, host or a run, {len(killing.runs)} runs"
    count(what, killing.killed.total(), f"{len(killing.problems)} wrong; {kinds}; {slowest}")
    assert not killing.problems, "\n".join(killing.problems)
    assert not full or max(killing.seconds) <= TRUE_SECONDS


def _differences(server: Server, run: str, undisturbed: str, epochs: int) -> list[str]:
    """What is wrong with a run once it has ended. Attempts that overlap would be mixed in its log."""
    status = server.wait_status(run, "finished", "failed", "damaged", "cancelled")["status"]
    folder = server.folder(run)
    found, expected = results(folder), results(server.folder(undisturbed))
    problems = [f"{name} differs" for name in sorted(found.keys() | expected) if found.get(name) != expected.get(name)]
    problems += problems_of(folder)
    attempts = [event["attempt"] for event in read_log(folder.events_path).events]
    if attempts != sorted(attempts):
        problems.append("two attempts have written at the same time")
    if status != "finished" or server.epochs(run) != [*range(1, epochs + 1)]:
        problems.append(f"it is {status} with epochs {server.epochs(run)}")
    return [f"run {run}: {problem}" for problem in problems]
