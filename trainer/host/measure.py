"""Measure this machine: which precision trains a net fastest, and how fast it multiplies matrices.

A measurement takes seconds and as many cores as a run, so only a child of the host makes it, while no run is active. To
compare precisions, ``engine.train`` trains on synthetic images in each of them, a few steps at a time in turn, so that a
slow moment of the machine affects all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer import engine, loader, measurements
from trainer.config import RunConfig
from trainer.environment import Environment, apply, check_precision, resolve
from trainer.events import Epoch
from trainer.failures import NonFiniteLoss, PrecisionUnsupported
from trainer.i18n import _
from trainer.loader import Data
from trainer.measurements import Section
from trainer.precision import choose
from trainer.progress import Stopwatch

BUDGET_SECONDS = 10.0  # for the timed steps of all precisions; a short probe of each comes before them
MOST_STEPS, LEAST_STEPS = 200, 3
NUM_BLOCKS = 5  # that are timed, after a first block that is not
PROBE_IMAGES = 8  # batch size of the probe, which sorts out precisions that are too slow
TOO_SLOW = 3.0  # a precision that takes more than this many times as long as float32 is dropped
MATMUL_SIZES = (1024, 2048, 4096)
MATMUL_REPEATS = 5
LONGEST_PRODUCT_SECONDS = 5.0
_MOST_IMAGES = 2048  # different synthetic images; longer epochs repeat them
Shape = tuple[int, int, int]


class WrongMachine(ValueError):
    """The requested measurement is for another machine or another version of PyTorch."""


def measure(
    home: Path,
    section: Section,
    key: str,
    config: RunConfig,
    image_shape: Shape,
    num_classes: int,
    *,
    num_threads: int,
    device: str,
) -> dict[str, Any]:
    """Make the measurement that ``key`` of a section names, record it in ``home`` and return the recorded entry.

    ``image_shape`` is (channels, height, width). For the section ``matmul``, ``config.precision`` is the precision of the
    matrices. Raises ``WrongMachine`` if the key does not belong to this machine, ``DeviceMissing``,
    ``PrecisionUnsupported``, and any error of PyTorch.
    """
    environments = _environments(config, image_shape, home, num_threads, device)
    plain = asdict(environments[0])
    actual = measurements.matmul_key(plain)
    if section == "precision":
        actual = measurements.precision_key(config, image_shape, plain)
    if actual != key:
        raise WrongMachine(
            _("This can't be measured on this machine: {wanted} was requested, but it is {actual}.").format(
                wanted=key, actual=actual
            )
        )
    apply(environments[0])
    if section == "matmul":
        return measurements.record(home, section, key, matmul_peak(environments[0]))
    return measurements.record(home, section, key, compare_precisions(config, image_shape, num_classes, environments))


def _environments(
    config: RunConfig, image_shape: Shape, home: Path, num_threads: int, device: str
) -> list[Environment]:
    """The environment of a run of this config. For ``auto``, one for each precision that is worth trying, float32 first."""
    wanted: list[str] = [config.precision]
    if config.precision == "auto":
        wanted = ["float32", *_mixed(device)]
    found = []
    for precision in wanted:
        explicit = config.model_copy(update={"precision": precision, "device": device})
        found.append(resolve(explicit, image_shape, home, num_threads=num_threads))
    return found


def _mixed(device: str) -> list[str]:
    """The mixed precisions that are worth trying on a device."""
    if device.startswith("cuda"):
        try:
            check_precision("bfloat16", device)
        except PrecisionUnsupported:
            return ["float16"]
        return ["bfloat16"]
    return ["bfloat16", "float16"] if device == "mps" else ["bfloat16"]


# Precision -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """The batch size and the number of steps to train, the same for every precision."""

    batch_size: int
    num_steps: int

    @classmethod
    def make(cls, batch_size: int, seconds_per_image: float) -> Plan:
        """As many steps as ``BUDGET_SECONDS`` allows, within bounds.

        ``seconds_per_image`` is the sum over all precisions. If not even ``LEAST_STEPS`` steps fit, the batch is made
        smaller.
        """
        while batch_size > PROBE_IMAGES and LEAST_STEPS * batch_size * seconds_per_image > BUDGET_SECONDS:
            batch_size = max(PROBE_IMAGES, batch_size // 2)
        steps = int(BUDGET_SECONDS / (batch_size * seconds_per_image))
        return cls(batch_size, max(LEAST_STEPS, min(MOST_STEPS, steps)))

    def blocks(self) -> list[int]:
        """The number of steps in each block: nearly equal, at least 1."""
        count = min(NUM_BLOCKS + 1, self.num_steps)
        ends = [self.num_steps * number // count for number in range(count + 1)]
        return [end - begin for begin, end in itertools.pairwise(ends)]


def compare_precisions(
    config: RunConfig, image_shape: Shape, num_classes: int, environments: Sequence[Environment]
) -> dict[str, Any]:
    """Train in each environment's precision, float32 first, and choose one by speed and loss.

    Returns ``chosen`` and, by precision, ``images_per_second`` and ``losses``. A loss is the mean over the same steps from
    the same weights. A precision that is too slow has a rate from the probe and no loss, and one that raises an error has
    neither. Raises the error of float32, if it raises one.
    """
    probe = Plan(min(PROBE_IMAGES, config.batch_size), 2)
    candidates = _train_in_turn(config, image_shape, num_classes, environments, probe)
    rates = {candidate.environment.precision: candidate.images_per_second() for candidate in candidates}
    promising = [
        candidate.environment
        for candidate in candidates
        if candidate.environment.precision == "float32"
        or rates[candidate.environment.precision] * TOO_SLOW > rates["float32"]
    ]
    plan = Plan.make(config.batch_size, sum(1 / rates[environment.precision] for environment in promising))
    losses = {}
    for candidate in _train_in_turn(config, image_shape, num_classes, promising, plan):
        rates[candidate.environment.precision] = candidate.images_per_second()
        if candidate.loss is not None:
            losses[candidate.environment.precision] = candidate.loss
    return {
        "chosen": choose(rates, losses),
        "images_per_second": {name: float(f"{rate:.4g}") for name, rate in rates.items()},
        "losses": {name: float(f"{loss:.6g}") for name, loss in losses.items()},
    }


def _train_in_turn(
    config: RunConfig, image_shape: Shape, num_classes: int, environments: Sequence[Environment], plan: Plan
) -> list[Candidate]:
    """Train one candidate per environment, one block of steps at a time in turn. Omits those that raised an error."""
    recipe = _recipe(config, plan)
    data = synthetic_images(recipe, image_shape, num_classes, plan, torch.device(environments[0].device))
    candidates = [Candidate(recipe, data, environment) for environment in environments]
    for number, steps in enumerate(plan.blocks()):
        for candidate in [*candidates]:
            if candidate is not candidates[0] and candidate.is_too_slow(candidates[0]):
                continue
            try:
                candidate.train(steps, is_warm=number > 0)
            except (RuntimeError, NonFiniteLoss):
                if candidate is candidates[0]:
                    raise
                candidates.remove(candidate)
    for candidate in candidates:
        if candidate is candidates[0] or not candidate.is_too_slow(candidates[0]):
            candidate.finish()
    return candidates


def _recipe(config: RunConfig, plan: Plan) -> RunConfig:
    """The config without what is not part of a step, and without what makes the loss of a few steps unstable."""
    return config.model_copy(
        update={
            "batch_size": plan.batch_size,
            "epochs": 1,
            "seed": 0,
            "schedule": "constant",
            "normalization": "half",
            "learning_rate": min(config.learning_rate, 0.0003 if config.optimizer in ("adam", "adamw") else 0.01),
            "permute_pixels": False,
            "validation_fraction": 0.0,
            "train_fraction": 1.0,
            "label_noise": 0.0,
            "early_stopping_patience": None,
            "progressive_size": False,
            "flip_averaging": False,
        }
    )


def synthetic_images(config: RunConfig, image_shape: Shape, num_classes: int, plan: Plan, device: torch.device) -> Data:
    """The same synthetic images on every call: a coarse pattern for each class, with noise.

    ``image_shape`` is (channels, height, width). An epoch has as many steps as the plan.
    """
    random = np.random.default_rng(0)
    height, width = image_shape[1:]
    patterns = random.integers(0, 256, (num_classes, image_shape[0], 4, 4), dtype=np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    wanted = plan.batch_size * plan.num_steps
    labels = random.integers(0, num_classes, min(wanted, _MOST_IMAGES))
    noise = random.integers(0, 128, (len(labels), *image_shape), dtype=np.uint8)
    images = patterns[labels][:, :, rows][:, :, :, columns] // 2 + noise
    few = slice(0, PROBE_IMAGES)
    moments = ((0.5,) * image_shape[0], (0.25,) * image_shape[0])
    data = loader.from_arrays(
        config,
        device,
        (images, labels),
        (images[few], labels[few]),
        class_names=[str(number) for number in range(num_classes)],
        moments=moments,
    )
    return replace(data, train_indices=torch.arange(wanted) % len(labels))


class Candidate:
    """Training in one precision, advanced step by step. Keeps its random state while other candidates train."""

    def __init__(self, config: RunConfig, data: Data, environment: Environment) -> None:
        self.environment = environment
        self.loss: float | None = None
        self._batch_size, self._device = config.batch_size, data.device
        self._events = engine.train(config, data, environment)
        self._random = _random_state(self._device)
        self._has_begun = False
        self._warm: list[float] = []  # seconds per step, one entry per block
        self._cold: list[float] = []  # the same for the first block, which includes the start-up

    def train(self, num_steps: int, *, is_warm: bool) -> None:
        """Train the next steps. Their time counts only if ``is_warm``, unless no other is known."""
        _set_random_state(self._device, self._random)
        if not self._has_begun:
            next(self._events)
            self._has_begun = True
        stopwatch = Stopwatch(self._device)
        for _step in range(num_steps):
            next(self._events)
        (self._warm if is_warm else self._cold).append(stopwatch.seconds() / num_steps)
        self._random = _random_state(self._device)

    def finish(self) -> None:
        """End the epoch and set ``loss`` to the mean over its steps, or leave it None if that is not finite."""
        with contextlib.suppress(NonFiniteLoss):
            for event in self._events:
                if isinstance(event, Epoch):
                    self.loss = event.train_loss if math.isfinite(event.train_loss) else None

    def is_too_slow(self, plain: Candidate) -> bool:
        """Whether it takes more than ``TOO_SLOW`` times as long as ``plain``, the candidate in float32."""
        mine, other = self._seconds_per_step(), plain._seconds_per_step()
        return mine is not None and other is not None and mine > TOO_SLOW * other

    def images_per_second(self) -> float:
        seconds = self._seconds_per_step()
        assert seconds is not None, "train was not called"
        return self._batch_size / seconds

    def _seconds_per_step(self) -> float | None:
        """The median over the warm blocks, or the cold one if there are none yet; None before any."""
        known = self._warm or self._cold
        return statistics.median(known) if known else None


def _random_state(device: torch.device) -> Tensor:
    """The state of the generator that dropout draws from on this device."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.set_rng_state(state)


# Matrix product ------------------------------------------------------------------------------------------------------


def matmul_peak(environment: Environment, sizes: Sequence[int] = MATMUL_SIZES) -> dict[str, Any]:
    """The best rate of a square matrix product: ``gflops``, in GFLOP/s, and the ``size`` that reaches it.

    A product of size n counts as 2 n^3 operations. Each size is timed several times, in turn with the others. A size is
    skipped if the rate of the smaller ones predicts more than ``LONGEST_PRODUCT_SECONDS``.
    """
    device, dtype = torch.device(environment.device), environment.autocast_dtype or torch.float32
    fastest: dict[int, float] = {}
    products: dict[int, Callable[[], Tensor]] = {}
    for size in sizes:
        if fastest and _seconds(size, max(_rate(*item) for item in fastest.items())) > LONGEST_PRODUCT_SECONDS:
            break
        products[size] = _product(size, device, dtype)
        fastest[size] = _timed(products[size], device)
    deadline = time.monotonic() + BUDGET_SECONDS
    for _repeat in range(MATMUL_REPEATS):
        for size, product in products.items():
            if time.monotonic() + fastest[size] < deadline:
                fastest[size] = min(fastest[size], _timed(product, device))
    best = max(fastest, key=lambda size: _rate(size, fastest[size]))
    return {"gflops": float(f"{_rate(best, fastest[best]):.4g}"), "size": best}


def _rate(size: int, seconds: float) -> float:
    """GFLOP/s of a product of size x size matrices in ``seconds``."""
    return 2 * size**3 / seconds / 1e9


def _seconds(size: int, gflops: float) -> float:
    """Seconds of a product of size x size matrices at ``gflops`` GFLOP/s."""
    return 2 * size**3 / gflops / 1e9


def _product(size: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    random = torch.Generator().manual_seed(size)
    left, right = (torch.randn(size, size, generator=random).to(device, dtype) for _factor in range(2))
    result = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=result)


def _timed(product: Callable[[], Tensor], device: torch.device) -> float:
    stopwatch = Stopwatch(device)
    product()
    return stopwatch.seconds()
