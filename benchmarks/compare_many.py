"""Time to compare many runs, and the ratio against a plain loop over pairs with scipy.stats.

Run ``python -m benchmarks.compare_many``. The loop computes counts, test and interval only: no sentence, no recipe.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from scipy import optimize, stats

from app.compare.comparison import compare
from app.compare.shapes import ComparedRun, Comparison
from app.store.predictions import Predictions
from trainer.config import parse_config

SEED = 0
_as_json = TypeAdapter(Comparison)


def make_runs(num_groups: int, num_seeds: int, num_images: int) -> list[ComparedRun]:
    """Runs of 80 to 98 % accuracy that share which images are hard."""
    random = np.random.default_rng(SEED)
    labels = random.integers(0, 10, num_images).astype(np.uint8)
    difficulty = random.standard_normal(num_images)
    runs = []
    for group, seed in itertools.product(range(num_groups), range(num_seeds)):
        config, _warnings = parse_config({"dataset": "mnist", "model": "fc", "width": group + 1, "seed": seed})
        skill = 0.8 + 1.2 * group / num_groups + 0.05 * random.standard_normal()
        wrong = difficulty + 0.5 * random.standard_normal(num_images) > skill
        predicted = np.where(wrong, (labels + random.integers(1, 10, num_images)) % 10, labels).astype(np.uint16)
        name = f"{group:02}{seed:02}"
        runs.append(
            ComparedRun(
                id=name,
                name=f"FC {group} seed {seed}",
                config=config.model_dump(),
                group=f"g{group}",
                seed=seed,
                test_fingerprint="same",
                epoch=1,
                predictions=predictions_of(labels, predicted),
            )
        )
    return runs


def predictions_of(labels: NDArray[Any], predicted: NDArray[np.uint16]) -> Predictions:
    return Predictions(labels, predicted, np.full(len(labels), 0.9, np.float32))


def product(runs: list[ComparedRun]) -> None:
    """All that ``GET /compare`` needs, from arrays to JSON."""
    fresh = [
        replace(run, predictions=predictions_of(run.known.labels, run.known.predicted)) for run in runs
    ]  # nothing cached
    groups: dict[str, list[ComparedRun]] = {}
    for run in fresh:
        groups.setdefault(run.group, []).append(run)
    _as_json.dump_json(compare(fresh, groups))


def plain_loop(runs: list[ComparedRun]) -> None:
    """The same numbers the usual way: a loop over pairs, ``binomtest``, a root finder per limit."""
    rows = []
    for a, b in itertools.combinations(runs, 2):
        right_a, right_b = a.known.predicted == a.known.labels, b.known.predicted == b.known.labels
        only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(~right_a & right_b))
        n, p = a.known.num_images, stats.binomtest(only_a, only_a + only_b).pvalue
        same_wrong = int(np.sum((a.known.predicted == b.known.predicted) & ~right_a))
        rows.append([only_a, only_b, same_wrong, p, *limits(only_a, only_b, n)])
    stats.false_discovery_control([row[3] for row in rows])
    json.dumps(rows)


def limits(b: int, c: int, n: int) -> list[float]:
    z, estimate = stats.norm.ppf(0.975), (b - c) / n

    def score(d: float) -> float:
        linear = (2 * n - b + c) * d - b - c
        q = (np.sqrt(linear**2 + 8 * n * c * d * (1 - d)) - linear) / (4 * n)
        return float((b - c - n * d) / np.sqrt(n * (2 * q + d * (1 - d))))

    low = optimize.brentq(lambda d: score(d) - z, -1 + 1e-9, estimate)
    return [low, optimize.brentq(lambda d: score(d) + z, estimate, 1 - 1e-9)]


def best_of(function: Callable[[list[ComparedRun]], None], runs: list[ComparedRun], repeats: int) -> float:
    """The shortest of several times, in seconds."""
    times = []
    for _repeat in range(repeats):
        started = time.perf_counter()
        function(runs)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer images, once, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.images, options.repeats = 1_000, 1
    print(f"numpy seed {SEED}, {options.images:,} images, best of {options.repeats}; {platform.machine()}")
    for num_groups, num_seeds in ((30, 1), (10, 3), (6, 5)):
        runs = make_runs(num_groups, num_seeds, options.images)
        ours, plain = best_of(product, runs, options.repeats), best_of(plain_loop, runs, options.repeats)
        num_pairs = len(runs) * (len(runs) - 1) // 2
        print(
            f"{len(runs)} runs ({num_groups} recipes x {num_seeds} seeds), {num_pairs} pairs: "
            f"{ours * 1000:.0f} ms, plain loop {plain * 1000:.0f} ms, {plain / ours:.1f} x as long"
        )


if __name__ == "__main__":
    main()
