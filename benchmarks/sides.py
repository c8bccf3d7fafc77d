"""Both sides of a comparison, each in a fresh process, and the data that they share. Imports neither torch nor numpy."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from trainer.datasets import catalogue, worker
from trainer.datasets.facts import KNOWN, find_originals
from trainer.home import datasets_root
from trainer.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
CIFAR_ARCHIVE = "cifar10-jpeg.zip"
RECIPES = {"fc": "mnist-fc", "cnn": "mnist-cnn", "lenet": "cifar10-lenet", "vgg": "cifar10-vgg"}
GREY = ("fc", "cnn")
Measured = dict[str, Any]  # what the process of a side prints as its last line


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    repeats: int = 3  # of each timing
    more_repeats: int = 7  # where one takes a few seconds only
    vgg_steps: int = 300  # training steps that are timed on both sides
    vgg_target_steps: int = 100  # of the notebook, before each training with vgg's fast preset
    memory_steps: int = 30  # of the notebook's loop whose memory is watched; Runoff's does a whole epoch
    share_steps: int = 75  # that the matrix product interrupts
    timed_images: int = 10_000  # that tell the rate of a long run's config
    matmul_every: int = 15
    lenet_epochs: int = 10
    vgg_epochs: int | None = None  # of the fast preset; None: as it says
    num_seeds: int = 5
    seed_models: tuple[str, ...] = ("fc", "cnn")
    sweep_repeats: int = 8
    recorded_epochs: tuple[int, ...] = (1, 5)


QUICK = Plan(
    repeats=1,
    more_repeats=1,
    vgg_steps=2,
    vgg_target_steps=2,
    memory_steps=2,
    share_steps=2,
    timed_images=256,
    matmul_every=2,
    lenet_epochs=2,
    vgg_epochs=1,
    num_seeds=2,
    seed_models=("fc",),
    sweep_repeats=2,
    recorded_epochs=(1,),
)


@dataclass
class Bench:
    """Where a benchmark finds its data, how much it measures, and what was found so far."""

    home: Path  # a RUNOFF_HOME for benchmarks only
    grey: str  # data set of fc and cnn
    colour: str  # of lenet and vgg
    mnist_root: Path | None  # a torchvision root, where ``grey`` is MNIST
    plan: Plan
    quick: bool = False
    run_folders: list[Path] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)  # results by name, as in the results file

    _settled: set[tuple[str, int]] = field(default_factory=set)

    def dataset(self, model: str) -> str:
        return self.grey if model in GREY else self.colour

    def num_train(self, model: str) -> int:
        """Training images of the model's data set."""
        count = catalogue.get_dataset(self.home, self.dataset(model)).num_train
        assert count is not None
        return count

    def notebook(
        self,
        model: str,
        *,
        seeds: Sequence[int] = (0,),
        epochs: int = 1,
        steps: int | None = None,
        threads: int | None = None,
        watch: bool = False,
    ) -> Measured:
        """The notebook's loop, with one net after the other for each of ``seeds``. ``watch`` adds ``peak_mb``."""
        if model in GREY and self.mnist_root is not None:
            data = ["--mnist", str(self.mnist_root)]
        else:
            data = ["--arrays", str(self.home / "datasets" / self.dataset(model))]
        options = ["--epochs", str(epochs), "--seeds", *map(str, seeds)]
        options += ["--steps", str(steps)] if steps else []
        options += ["--threads", str(threads)] if threads else []
        return self._measure([str(ROOT / "benchmarks" / "notebook_loop.py"), model, *data, *options], watch)

    def runoff(
        self, configs: Sequence[Mapping[str, Any]], *, matmul_every: int | None = None, watch: bool = False
    ) -> Measured:
        """Runoff's engine, with one net after the other for each of ``configs``; precision and threads as the product."""
        self.settle(configs[0])
        options = ["--home", str(self.home), *(["--matmul-every", str(matmul_every)] if matmul_every else [])]
        texts = [json.dumps(config) for config in configs]
        return self._measure(["-m", "benchmarks.engine_loop", *options, "--", *texts], watch)

    def settle(self, config: Mapping[str, Any]) -> None:
        """Have ``precision=auto`` decided for the config's net, once, as the product does while it is idle."""
        kind = (config["model"], config.get("batch_size", 64))
        if config.get("precision", "auto") == "auto" and kind not in self._settled and not self.quick:
            self._settled.add(kind)
            self._measure(
                ["-m", "benchmarks.engine_loop", "--home", str(self.home), "--settle", "--", json.dumps(config)]
            )

    def versions(self) -> dict[str, str]:
        """Machine and versions."""
        return {
            name: str(value) for name, value in self._measure(["-m", "benchmarks.engine_loop", "--versions"]).items()
        }

    def recipe(self, model: str, **changes: Any) -> dict[str, Any]:
        """The notebook's recipe for one epoch, as a config."""
        return self.preset(RECIPES[model], **{"epochs": 1, **changes})

    def preset(self, name: str, **changes: Any) -> dict[str, Any]:
        """A preset on this benchmark's data, as a config."""
        base = PRESETS[name].base
        return {**base, "dataset": self.dataset(base["model"]), **changes}

    def _measure(self, arguments: list[str], watch: bool = False) -> Measured:
        environment = {**os.environ, "RUNOFF_HOME": str(self.home)}
        # ours, which the notebook's loop does not have; our side sets it itself
        environment.pop("GOMP_SPINCOUNT", None)
        command = [sys.executable, *arguments]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            peak = peak_mb(process.pid, lambda: process.poll() is not None) if watch else 0.0
            output, _errors = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        measured: Measured = json.loads(output.splitlines()[-1])
        return {**measured, "peak_mb": peak} if watch else measured


def peak_mb(pid: int, is_over: Callable[[], bool]) -> float:
    """The most memory that a process and its children take together until it is over, in MB, looked at 4 times a second.

    It is the proportional set size of each (a page that n processes share counts as 1/n), where the system tells it
    (Linux), else the resident set.
    """
    peak, leader = 0.0, psutil.Process(pid)
    while not is_over():
        sizes = []
        with suppress(psutil.Error):  # one that has just ended
            for one in (leader, *leader.children(recursive=True)):
                memory = one.memory_full_info()
                sizes.append(getattr(memory, "pss", memory.rss))
        peak = max(peak, sum(sizes) / 1e6)
        time.sleep(0.25)
    return peak


def interleaved(repeats: int, sides: Mapping[str, Callable[[int], Measured]]) -> dict[str, list[Measured]]:
    """Call the sides in turn, ``repeats`` times, so that a slow minute of the machine falls on all of them."""
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    for number in range(repeats):
        for name, side in sides.items():
            found[name].append(side(number))
            print(f"  {name}: {number + 1} of {repeats}", flush=True)
    return found


def check_same_work(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` where two loops did not train and test on equally many images in equally many steps."""
    for name in ("steps", "num_trained", "num_tested"):
        if one[name] != other[name]:
            raise ValueError(
                f"The comparison is void: {name} is {one[name]} on one side and {other[name]} on the other."
            )


def loop_of(measured: Measured) -> dict[str, Any]:
    """The only loop of a process."""
    [loop] = measured["loops"]
    result: dict[str, Any] = loop
    return result


def each(measured: Sequence[Measured], name: str) -> list[float]:
    """A number of the only loop of each process."""
    return [float(loop_of(one)[name]) for one in measured]


def ratio_of(notebook: Sequence[float], runoff: Sequence[float]) -> float:
    """How many times as fast Runoff is, by the medians."""
    return statistics.median(notebook) / statistics.median(runoff)


# Data ----------------------------------------------------------------------------------------------------------------


def prepare(home: Path) -> tuple[str, str, Path]:
    """MNIST and CIFAR-10 in the cache of ``home``; their names there, and the torchvision root of MNIST.

    CIFAR-10 is the archive of JPEG files beside MNIST where there is one, else torchvision's. Raises ``DatasetError``.
    """
    _exhaust(worker.prepare(home, "mnist"))
    root = find_originals(KNOWN["mnist"], (datasets_root(), home / "downloads"))
    assert root is not None
    archive = (datasets_root() or home) / CIFAR_ARCHIVE
    if not archive.is_file():
        _exhaust(worker.prepare(home, "cifar10"))
        return "mnist", "cifar10", root.root
    name = archive.stem
    if name not in [dataset.name for dataset in catalogue.list_datasets(home)]:
        _exhaust(worker.import_images(home, name, archive))
    return "mnist", name, root.root


def prepare_quick(home: Path) -> tuple[str, str]:
    """Data that need no download: the built-in digits, and a few images of coloured noise."""
    _exhaust(worker.prepare(home, "digits"))
    folder = home / "coloured-noise"
    _write_coloured_noise(folder)
    _exhaust(worker.import_images(home, "coloured-noise", folder))
    return "digits", "coloured-noise"


def _exhaust(progress: Any) -> None:
    for _event in progress:
        pass


def _write_coloured_noise(folder: Path) -> None:
    """PNG files of 32 x 32 pixels in folders of ten classes; each class has a tint of its own."""
    from PIL import Image, ImageChops

    for split, count in (("train", 26), ("test", 4)):
        for label in range(10):
            place = folder / split / f"class-{label}"
            place.mkdir(parents=True, exist_ok=True)
            tint = Image.new("RGB", (32, 32), tuple(label * step % 256 for step in (25, 71, 139)))
            for number in range(count):
                noise = Image.merge("RGB", [Image.effect_noise((32, 32), 60) for _channel in range(3)])
                ImageChops.add(noise, tint, scale=2).save(place / f"{number}.png")
