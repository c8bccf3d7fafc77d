"""Runoff's side of the comparison, without server and run folder: ``trainer.engine`` in a fresh process.

Prints as its last line what it measured, as JSON, in the same words as ``notebook_loop``. The clock runs from before the
net is made until the last test image is answered; opening the data is outside.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from trainer import engine, layers, loader, measurements
from trainer.config import RunConfig, parse_config
from trainer.cores import threads_for
from trainer.datasets import catalogue
from trainer.environment import Environment, apply, machine, precision_key, resolve, resolve_device
from trainer.events import Epoch, Finished, Started
from trainer.host import measure

MATMUL_REPEATS = {1024: 16, 2048: 2, 4096: 1}  # side of the square -> products in one timing


class MatmulRates:
    """The rate of the square matrix product on this device, in the run's precision and with its threads."""

    def __init__(self, environment: Environment) -> None:
        self._device = torch.device(environment.device)
        dtype = environment.autocast_dtype or torch.float32
        self._factors = {side: torch.randn(side, side).to(self._device, dtype) for side in MATMUL_REPEATS}
        self._rounds: list[dict[int, float]] = []  # GFLOP/s by side
        self.measure()  # the first products are slower; they do not count
        self._rounds.clear()

    def measure(self) -> None:
        """One round: each side once."""
        self._rounds.append({side: self._rate(side, repeats) for side, repeats in MATMUL_REPEATS.items()})

    def _rate(self, side: int, repeats: int) -> float:
        factor = self._factors[side]
        self._synchronize()
        begin = time.perf_counter()
        for _repeat in range(repeats):
            torch.mm(factor, factor)
        self._synchronize()
        return 2 * side**3 * repeats / (time.perf_counter() - begin) / 1e9

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def result(self) -> dict[str, Any]:
        """The median over the rounds of each side, in GFLOP/s, the best of these, and the fastest round of all."""
        medians = {side: statistics.median(one[side] for one in self._rounds) for side in MATMUL_REPEATS}
        side = max(medians, key=medians.__getitem__)
        fastest = max(rate for one in self._rounds for rate in one.values())
        return {
            "gflops": medians[side],
            "size": side,
            "medians": medians,
            "fastest": fastest,
            "rounds": len(self._rounds),
        }


def run(config: RunConfig, home: Path, threads: int, matmul_every: int | None) -> dict[str, Any]:
    """Train and test as ``config`` says; times in seconds.

    ``matmul_every`` steps the matrix product is timed as well, while the engine's own clock stands still.
    """
    dataset = catalogue.get_dataset(home, config.dataset)
    assert dataset.image_shape is not None
    environment = resolve(config, dataset.image_shape, home, num_threads=threads)
    apply(environment)
    if environment.convolution == "fused":
        import trainer.fast.conv_pool  # noqa: F401  (as the host has it before it forks a run)
    data = loader.load(home, config, torch.device(environment.device))
    rates = MatmulRates(environment) if matmul_every else None
    epochs: list[dict[str, Any]] = []
    num_train = step = 0
    begin = started = end = time.perf_counter()
    for event in engine.train(config, data, environment):
        if isinstance(event, Started):
            started, num_train = time.perf_counter(), event.num_train
            continue
        if isinstance(event, Epoch):
            epochs.append({"at_seconds": time.perf_counter() - begin, **_numbers(event)})
        elif isinstance(event, Finished):
            end = time.perf_counter()
        step += 1
        if rates is not None and matmul_every and step % matmul_every == 0 and not epochs:
            rates.measure()
    test_seconds = sum(epoch["evaluation_seconds"] for epoch in epochs)
    return {
        "seed": config.seed,
        "seconds": end - begin,
        "train_seconds": end - begin - test_seconds,
        "test_seconds": test_seconds,
        "loop_seconds": end - started,
        "steps": epochs[-1]["step"],
        "num_trained": num_train * len(epochs),
        "num_tested": epochs[-1]["test_total"],
        "accuracy": epochs[-1]["test_accuracy"],
        "epochs": epochs,
        "precision": environment.precision,
        "flops_per_image": layers.training_flops(config, data.image_shape, data.num_classes),
        "matmul": None if rates is None else rates.result(),
    }


def _numbers(event: Epoch) -> dict[str, Any]:
    names = ("epoch", "step", "test_accuracy", "test_total", "train_loss", "seconds", "evaluation_seconds")
    return {name: getattr(event, name) for name in names}


def settle(config: RunConfig, home: Path, threads: int) -> None:
    """Measure which precision ``auto`` is for this config, unless that is known in ``home``."""
    dataset = catalogue.get_dataset(home, config.dataset)
    assert dataset.image_shape is not None
    device = resolve_device(config.device)
    key = precision_key(config, dataset.image_shape, device)
    if key not in measurements.read(home).get("precision", {}):
        measure.measure(
            home,
            "precision",
            key,
            config,
            dataset.image_shape,
            len(dataset.class_names),
            num_threads=threads,
            device=device,
        )


def versions() -> dict[str, str]:
    """What the numbers depend on."""
    packages = {name: version(name) for name in ("torch", "torchvision", "numpy")}
    system = f"{platform.system()} {platform.release()}"
    accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return {"machine": f"{machine()}, {accelerator}", "system": system, "python": platform.python_version(), **packages}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--versions", action="store_true", help="only say what the numbers depend on")
    parser.add_argument("--home", type=Path, help="RUNOFF_HOME with the data sets in it")
    parser.add_argument("--threads", type=int, help="default: what the product takes for the net")
    parser.add_argument("--settle", action="store_true", help="only decide the precision of the first config")
    parser.add_argument("--matmul-every", type=int, metavar="STEPS", help="time the matrix product as well")
    parser.add_argument("configs", nargs="*", help="configurations as JSON, trained one after the other")
    options = parser.parse_args(argv)
    if options.versions:
        print(json.dumps(versions()))
        return
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # as in notebook_loop: late imports before the clock
    configs = [parse_config(json.loads(text))[0] for text in options.configs]
    threads = options.threads or threads_for(configs[0].model)
    if options.settle:
        settle(configs[0], options.home, threads)
        print(json.dumps({}))
        return
    loops = [run(config, options.home, threads, options.matmul_every) for config in configs]
    print(json.dumps({"loops": loops, "threads": threads, "precision": loops[0]["precision"]}))


if __name__ == "__main__":
    main()
