"""The process of a run is killed again and again. The run ends with the same bits as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from tests.faults.conftest import Count
from tests.faults.results import ending, problems_of, reported_epochs, results, trained_attempt
from tests.faults.servers import BASE, Server, lock_holder, wait_for

pytestmark = pytest.mark.faults

SHORT_EPOCHS = {**BASE, "batch_size": 32}  # a kill often meets a save
RECIPES: list[dict[str, Any]] = [
    {**SHORT_EPOCHS, "schedule": "cosine"},
    {**SHORT_EPOCHS, "optimizer": "adam", "learning_rate": 0.001, "augmentation": "crop_flip"},
    {**SHORT_EPOCHS, "optimizer": "muon", "label_noise": 0.2, "validation_fraction": 0.1},
    {**SHORT_EPOCHS, "model": "cnn", "optimizer": "adamw", "learning_rate": 0.001, "schedule": "one_cycle"},
]
SLOTS = 2
BACK_SECONDS = 15.0
LATEST_KILL_SECONDS = 0.4  # after an epoch or the start of an attempt
EARLY = 0.05  # how many kills come before the attempt has completed an epoch


@dataclass
class Kills:
    """The kills of one run: when the next attempt trained, and how many came before a first epoch."""

    run: str
    seconds: list[float]
    num_early: int = 0


def test_a_run_killed_at_any_moment_ends_with_the_same_bits(
    server: Server, full: bool, chance: random.Random, count: Count
) -> None:
    recipes, repeats, kills_per_run, epochs = (RECIPES, 5, 10, 120) if full else (RECIPES[:1], 2, 2, 30)
    recipes = [{**recipe, "epochs": epochs} for recipe in recipes]
    undisturbed = [server.begin(**recipe) for recipe in recipes]
    for run in undisturbed:
        assert server.wait_status(run, "finished", "failed")["status"] == "finished"
    plans = [(number, chance.random()) for number in range(len(recipes)) for _repeat in range(repeats)]

    def disturb(plan: tuple[int, float]) -> tuple[Kills, list[str]]:
        number, seed = plan
        kills = _kill_again_and_again(server, recipes[number], kills_per_run, random.Random(seed))
        return kills, _differences(server, kills, undisturbed[number], epochs)

    with ThreadPoolExecutor(SLOTS) as pool:
        outcomes = list(pool.map(disturb, plans))
    seconds = [each for kills, _problems in outcomes for each in kills.seconds]
    wrong = [problem for _kills, problems in outcomes for problem in problems]
    num_early = sum(kills.num_early for kills, _problems in outcomes)
    back = f"training again after {statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (longest)"
    what = f"kill -9 of a run's process, {len(plans)} runs"
    count(what, len(seconds), f"{len(wrong)} wrong; {num_early} before the first epoch of an attempt; {back}")
    assert not wrong, "\n".join(wrong)
    assert len(seconds) == len(plans) * kills_per_run, "each run lives long enough for its kills"
    assert not full or max(seconds) <= BACK_SECONDS


def _kill_again_and_again(server: Server, recipe: dict[str, Any], times: int, chance: random.Random) -> Kills:
    """Start a run and kill its process: as a rule after a new epoch, and at most once in a row before one."""
    kills = Kills(server.begin(**recipe), [])
    folder = server.folder(kills.run)
    epochs, is_early = 0, False
    for attempt in range(1, times + 1):
        is_early = attempt > 1 and not is_early and chance.random() < EARLY
        if is_early:
            kills.num_early += 1
        else:
            wait_for(lambda known=epochs: len(reported_epochs(folder)) > known or ending(folder))  # type: ignore[misc]
        time.sleep(chance.uniform(0, LATEST_KILL_SECONDS))
        process = lock_holder(folder)
        if process is None or ending(folder):
            return kills
        os.kill(process, signal.SIGKILL)
        begin = time.monotonic()
        wait_for(lambda: lock_holder(folder) != process)  # noqa: B023  (called at once)
        epochs = len(reported_epochs(folder))
        wait_for(lambda wanted=attempt + 1: trained_attempt(folder) >= wanted)  # type: ignore[misc]
        kills.seconds.append(time.monotonic() - begin)
    return kills


def _differences(server: Server, kills: Kills, undisturbed: str, epochs: int) -> list[str]:
    """What is wrong with a run that was killed, once it has ended."""
    ended = server.wait_status(kills.run, "finished", "failed", "damaged")
    folder = server.folder(kills.run)
    found, expected = results(folder), results(server.folder(undisturbed))
    problems = [f"{name} differs" for name in sorted(found.keys() | expected) if found.get(name) != expected.get(name)]
    problems += problems_of(folder)
    if (ended["status"], ended["attempt"]) != ("finished", len(kills.seconds) + 1):
        problems.append(f"{ended['status']} in attempt {ended['attempt']} after {len(kills.seconds)} kills")
    if not reported_epochs(folder) == server.epochs(kills.run) == [*range(1, epochs + 1)]:
        problems.append(f"the log has epochs {reported_epochs(folder)}, the API {server.epochs(kills.run)}")
    return [f"run {kills.run}: {problem}" for problem in problems]
