"""All cases by name, in the order in which they are measured."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from app.statistics import t_quantile, welch_t
from benchmarks.epochs import TITLES, epoch_and_test, matmul_share, memory, vgg_epoch
from benchmarks.report import Result, accuracies, percent
from benchmarks.sides import ROOT, Bench, check_same_work
from benchmarks.targets import time_to_accuracy, vgg_runs, vgg_target
from benchmarks.through_server import recording, sweep

Case = Callable[[Bench], Iterator[Result]]


def equal_results(bench: Bench) -> Iterator[Result]:
    """Test accuracies of both sides in float32, over seeds."""
    raw: dict[str, Any] = {}
    rows, all_agree, seeds = [], True, range(bench.plan.num_seeds)
    for model in bench.plan.seed_models:
        configs = [bench.recipe(model, seed=seed, precision="float32") for seed in seeds]
        sides = {"notebook loop": bench.notebook(model, seeds=seeds), "Runoff": bench.runoff(configs)}
        for one, other in zip(sides["notebook loop"]["loops"], sides["Runoff"]["loops"], strict=True):
            check_same_work(one, other)
        found = {side: [loop["accuracy"] for loop in one["loops"]] for side, one in sides.items()}
        test = welch_t(found["Runoff"], found["notebook loop"])
        half = t_quantile(test.df) * test.squared_error**0.5
        all_agree = all_agree and abs(test.difference) <= half
        low, high = 100 * (test.difference - half), 100 * (test.difference + half)
        difference = f"{100 * test.difference:+.2f} ({low:+.2f} to {high:+.2f})"
        rows += [
            [
                TITLES[model],
                side,
                percent(statistics.mean(values)),
                f"{100 * statistics.stdev(values):.2f}",
                accuracies(values),
                difference if side == "Runoff" else "",
            ]
            for side, values in found.items()
        ]
        raw[model] = found
    yield Result(
        "equal",
        "Equal results in float32",
        "all intervals of the differences contain zero" if all_agree else "an interval excludes zero",
        f"{len(seeds)} seeds per side",
        sentence="Test accuracy with the notebook's recipe. The same seed gives other random numbers on each side, so the "
        "means are compared, with Welch's interval at 95 %.",
        head=["net", "side", "mean", "standard deviation, points", "all seeds", "Runoff minus notebook, points"],
        rows=rows,
        raw=raw,
    )


def program(name: str, title: str, bench: Bench, *arguments: str) -> Iterator[Result]:
    """``benchmarks/NAME.py``, a program of its own; with a title, what it prints goes into the page."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, *(["--quick"] if bench.quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout)
    if title:
        yield Result(name, title, "", "", text=done.stdout)


def false_alarms(bench: Bench) -> Iterator[Result]:
    """Real repeats of one recipe against others; with a home that is kept, an interrupted measurement goes on."""
    answers = bench.home / f"false-alarms-{bench.grey}.jsonl"
    return program("false_alarms", "", bench, "--home", str(bench.home), "--results", str(answers))


CASES: dict[str, Case] = {
    "fc": partial(epoch_and_test, "fc"),
    "cnn": partial(epoch_and_test, "cnn"),
    "lenet": partial(epoch_and_test, "lenet"),
    "vgg": vgg_epoch,
    "share": matmul_share,
    "memory": memory,
    "cnn-target": partial(time_to_accuracy, "cnn", "mnist-cnn-fast"),
    "lenet-target": partial(time_to_accuracy, "lenet", "cifar10-lenet-fast"),
    "vgg-target": vgg_target,
    "vgg-runs": vgg_runs,
    "sweep": sweep,
    "recording": recording,
    "equal": equal_results,
    "start": partial(program, "start_latency", "From a request to the first step"),
    "compare": partial(program, "compare_many", "Comparing many runs"),
    "scale": partial(program, "at_scale", "With 10,000 runs in the index"),
    "intervals": partial(program, "interval_coverage", ""),
    "false-alarms": false_alarms,
}
