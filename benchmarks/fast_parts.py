"""What each part of ``trainer.fast`` gains: an epoch and its test with all parts, and without one of them.

``python -m benchmarks.fast_parts`` prints the table of docs/lab/fast-parts.md. Each measurement runs in a separate process,
on random images in memory. The ways take turns, and the order of the turns alternates, so a machine that becomes slower
slows all of them. A ratio is the median of the ratios within each turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.sides import ROOT
from trainer import engine, loader
from trainer.config import RunConfig, parse_config
from trainer.cores import threads_for
from trainer.environment import Environment, apply, machine, resolve
from trainer.events import Epoch
from trainer.fast import memory, sequence
from trainer.loader import Data

ALL = "all parts"
# A part, and the fields of the environment that leave it out. The last two parts have no field.
FIELDS: dict[str, dict[str, Any]] = {
    ALL: {},
    "convolution": {"convolution": "direct", "channels_last": True},
    "BatchNorm layer": {"fused_norm": False},
    "channels last": {"channels_last": False},
    "CUDA graphs": {"graphs": False},
    "kept memory": {},
    "pooling before ReLU": {},
}


@dataclass(frozen=True)
class Net:
    """A net of the table, what it trains on, and its parts."""

    model: str
    dataset: str
    shape: tuple[int, int, int]
    batch_size: int
    num_train: int
    num_test: int
    cpu: tuple[str, ...]  # the parts that it uses on a CPU
    cuda: tuple[str, ...] = ("CUDA graphs",)


NETS = {
    net.model: net
    for net in (
        Net("fc", "mnist", (1, 28, 28), 64, 60_000, 10_000, ("kept memory",)),
        Net("cnn", "mnist", (1, 28, 28), 64, 60_000, 10_000, ("convolution", "kept memory")),
        Net("lenet", "cifar10", (3, 32, 32), 64, 50_000, 10_000, ("convolution", "kept memory")),
        Net(
            "vgg",
            "cifar10",
            (3, 32, 32),
            128,
            2_560,
            640,
            ("convolution", "BatchNorm layer", "channels last", "kept memory", "pooling before ReLU"),
            ("CUDA graphs", "channels last"),
        ),
    )
}
_WARM_EPOCHS = {"cpu": 0, "cuda": 1}  # CUDA graphs are recorded in the first epoch


def without(environment: Environment, part: str) -> Environment:
    """The environment without a part; a part without a field is turned off in this process."""
    if part == "kept memory":
        memory._SETTINGS.clear()
    if part == "pooling before ReLU":
        sequence.pool_before_relu = lambda net: net
    return replace(environment, **FIELDS[part])


def random_images(net: Net, device: torch.device, config: RunConfig) -> Data:
    """Images and labels without meaning: what they show does not change the time."""
    random = np.random.default_rng(0)
    train, test = (
        (random.integers(0, 256, (count, *net.shape), dtype=np.uint8), random.integers(0, 10, count))
        for count in (net.num_train, net.num_test)
    )
    moments = ((0.5,) * net.shape[0], (0.25,) * net.shape[0])
    return loader.from_arrays(config, device, train, test, class_names=list("0123456789"), moments=moments)


def measure(net: Net, part: str, device: str, precision: str) -> dict[str, Any]:
    """Seconds of an epoch and its test in this process: the median of those after the warm ones."""
    warm = _WARM_EPOCHS[device.split(":")[0]]
    fields = {"dataset": net.dataset, "model": net.model, "batch_size": net.batch_size, "epochs": 1 + 3 * warm}
    config, _warnings = parse_config({**fields, "precision": precision, "device": device})
    nowhere = Path("/nonexistent")  # no measured precision is looked up: it is given
    environment = without(resolve(config, net.shape, nowhere, num_threads=threads_for(net.model)), part)
    apply(environment)
    data = random_images(net, torch.device(environment.device), config)
    epochs = [event for event in engine.train(config, data, environment) if isinstance(event, Epoch)][warm:]
    seconds = statistics.median(epoch.seconds + epoch.evaluation_seconds for epoch in epochs)
    return {"seconds": seconds, "threads": environment.num_threads}


def in_fresh_process(net: Net, part: str, device: str, precision: str) -> dict[str, Any]:
    """``measure`` in a separate process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.fast_parts",
        "--child",
        json.dumps(asdict(net)),
        part,
        device,
        precision,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_for(net.model))}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table_rows(net: Net, device: str, precision: str, repeats: int) -> list[str]:
    """The rows of a net in the table."""
    parts = (ALL, *(net.cuda if device.startswith("cuda") else net.cpu))
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    threads = 0
    for turn in range(repeats):
        for part in parts if turn % 2 == 0 else parts[::-1]:
            result = in_fresh_process(net, part, device, precision)
            seconds[part].append(result["seconds"])
            threads = result["threads"]
            print(f"{net.model} without {part}: {result['seconds']:.3f} s", file=sys.stderr, flush=True)
    rows = []
    for part in parts:
        ratios = [one / whole for one, whole in zip(seconds[part], seconds[ALL], strict=True)]
        ratio = "" if part == ALL else f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        name = ALL if part == ALL else f"without {part}"
        median = f"{statistics.median(seconds[part]):.2f}"
        rows.append(f"| `{net.model}`, {precision}, threads: {threads} | {name} | {median} | {ratio} |")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS), help="comma-separated")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fc on few images, once, to see that it works")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        values, part, device, precision = options.child
        print(json.dumps(measure(Net(**json.loads(values)), part, device, precision)))
        return
    nets = [NETS[name] for name in options.nets.split(",")]
    repeats = options.repeats
    if options.quick:
        nets, repeats = [replace(NETS["fc"], num_train=640, num_test=640)], 1
    print(f"{machine()}, torch {torch.__version__}, {repeats} repeats\n")
    print("| net | parts | seconds | ratio to all parts |\n|---|---|---|---|")
    for net in nets:
        rows = table_rows(net, options.device, options.precision, repeats)
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
