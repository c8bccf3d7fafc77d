"""Measuring this machine: which precision trains a net fastest, and how fast it multiplies matrices.

Takes seconds and all cores that a run would take, so only a child of the host does it, while no run is on. What is
measured is the engine itself on made-up images: ``engine.train`` of each precision, a few steps of one in turn with a
few of the other.
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

BUDGET_SECONDS = 10.0  # of steps that are timed; the first look at each precision comes on top
MOST_STEPS, LEAST_STEPS = 200, 3
NUM_BLOCKS = 5  # steps are timed in so many blocks, after a first one that is not
PROBE_IMAGES = 8  # of a batch that tells whether a precision is hopeless
HOPELESS = 3.0  # a precision that needs so many times float32's seconds is not looked at any longer
MATMUL_SIZES = (1024, 2048, 4096)
MATMUL_REPEATS = 5
LONGEST_PRODUCT_SECONDS = 5.0
_MOST_IMAGES = 2048
Shape = tuple[int, int, int]


class OtherMachine(ValueError):
    """A measurement is asked for that this machine or this PyTorch can't give."""


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
    """Measure what ``key`` names, record it in ``home`` and return what stands there now.

    For ``matmul`` the config names the precision. Raises ``OtherMachine`` where the key is not one of this machine,
    ``DeviceMissing`` or ``PrecisionUnsupported``, and what PyTorch raises.
    """
    environments = _environments(config, image_shape, home, num_threads, device)
    plain = asdict(environments[0])
    own = measurements.matmul_key(plain)
    if section == "precision":
        own = measurements.precision_key(config, image_shape, plain)
    if own != key:
        raise OtherMachine(
            _("This can't be measured on this machine: {wanted} was requested, but it is {own}.").format(
                wanted=key, own=own
            )
        )
    apply(environments[0])
    if section == "matmul":
        return measurements.record(home, section, key, matmul_peak(environments[0]))
    return measurements.record(home, section, key, precisions(config, image_shape, num_classes, environments))


def _environments(
    config: RunConfig, image_shape: Shape, home: Path, num_threads: int, device: str
) -> list[Environment]:
    """What a run of the config would obey in its precision, or for ``auto`` in each that the device knows."""
    wanted: list[str] = [config.precision]
    if config.precision == "auto":
        wanted = ["float32", *_mixed(device)]
    found = []
    for precision in wanted:
        one = config.model_copy(update={"precision": precision, "device": device})
        found.append(resolve(one, image_shape, home, num_threads=num_threads))
    return found


def _mixed(device: str) -> list[str]:
    """The mixed precisions that are worth a try."""
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
    """How much is trained: the same for every precision."""

    batch_size: int
    num_steps: int

    @classmethod
    def make(cls, batch_size: int, seconds_per_image: float) -> Plan:
        """As many steps as the budget allows; ``seconds_per_image`` is of all precisions together.

        Where not even the fewest steps fit, the batch is smaller than the run's.
        """
        while batch_size > PROBE_IMAGES and LEAST_STEPS * batch_size * seconds_per_image > BUDGET_SECONDS:
            batch_size = max(PROBE_IMAGES, batch_size // 2)
        steps = int(BUDGET_SECONDS / (batch_size * seconds_per_image))
        return cls(batch_size, max(LEAST_STEPS, min(MOST_STEPS, steps)))

    def blocks(self) -> list[int]:
        """The steps in blocks, nearly equal ones, of at least one step."""
        count = min(NUM_BLOCKS + 1, self.num_steps)
        ends = [self.num_steps * number // count for number in range(count + 1)]
        return [end - begin for begin, end in itertools.pairwise(ends)]


def precisions(
    config: RunConfig, image_shape: Shape, num_classes: int, environments: Sequence[Environment]
) -> dict[str, Any]:
    """Train in each precision, float32 first: ``chosen``, and by precision ``images_per_second`` and ``losses``.

    A loss is the mean over the same steps from the same weights. A precision that is hopelessly slow has a rate from a
    small batch and no loss; one that raises has neither. Raises what float32 raises.
    """
    probe = Plan(min(PROBE_IMAGES, config.batch_size), 2)
    candidates = _tried(config, image_shape, num_classes, environments, probe)
    rates = {candidate.environment.precision: candidate.images_per_second() for candidate in candidates}
    promising = [
        candidate.environment
        for candidate in candidates
        if candidate.environment.precision == "float32"
        or rates[candidate.environment.precision] * HOPELESS > rates["float32"]
    ]
    plan = Plan.make(config.batch_size, sum(1 / rates[environment.precision] for environment in promising))
    losses = {}
    for candidate in _tried(config, image_shape, num_classes, promising, plan):
        rates[candidate.environment.precision] = candidate.images_per_second()
        if candidate.loss is not None:
            losses[candidate.environment.precision] = candidate.loss
    return {
        "chosen": choose(rates, losses),
        "images_per_second": {name: float(f"{rate:.4g}") for name, rate in rates.items()},
        "losses": {name: float(f"{loss:.6g}") for name, loss in losses.items()},
    }


def _tried(
    config: RunConfig, image_shape: Shape, num_classes: int, environments: Sequence[Environment], plan: Plan
) -> list[Candidate]:
    """One candidate an environment, trained in turn; without those that raised."""
    recipe = _recipe(config, plan)
    data = made_up_images(recipe, image_shape, num_classes, plan, torch.device(environments[0].device))
    candidates = [Candidate(recipe, data, environment) for environment in environments]
    for number, steps in enumerate(plan.blocks()):
        for candidate in [*candidates]:
            if candidate is not candidates[0] and candidate.is_hopeless(candidates[0]):
                continue
            try:
                candidate.train(steps, is_warm=number > 0)
            except (RuntimeError, NonFiniteLoss):
                if candidate is candidates[0]:
                    raise
                candidates.remove(candidate)
    for candidate in candidates:
        if candidate is candidates[0] or not candidate.is_hopeless(candidates[0]):
            candidate.finish()
    return candidates


def _recipe(config: RunConfig, plan: Plan) -> RunConfig:
    """The config without what is no part of a step or would let the loss go astray within a few steps."""
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


def made_up_images(config: RunConfig, image_shape: Shape, num_classes: int, plan: Plan, device: torch.device) -> Data:
    """Images with a coarse pattern of their class under noise, always the same; an epoch of them is the plan's steps."""
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
    """One precision at work: the engine's generator, turned step by step, with the random state that it left."""

    def __init__(self, config: RunConfig, data: Data, environment: Environment) -> None:
        self.environment = environment
        self.loss: float | None = None
        self._batch_size, self._device = config.batch_size, data.device
        self._events = engine.train(config, data, environment)
        self._random = _random_state(self._device)
        self._has_begun = False
        self._warm: list[float] = []  # seconds a step, one entry a block
        self._cold: list[float] = []

    def train(self, num_steps: int, *, is_warm: bool) -> None:
        """The next steps; ``is_warm`` tells whether their time counts."""
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
        """End the epoch, which tells the mean loss over its steps; it stays None where it was not finite."""
        with contextlib.suppress(NonFiniteLoss):
            for event in self._events:
                if isinstance(event, Epoch):
                    self.loss = event.train_loss if math.isfinite(event.train_loss) else None

    def is_hopeless(self, plain: Candidate) -> bool:
        """Whether it is so much slower than ``plain`` that more steps would be wasted."""
        mine, other = self._seconds_per_step(), plain._seconds_per_step()
        return mine is not None and other is not None and mine > HOPELESS * other

    def images_per_second(self) -> float:
        seconds = self._seconds_per_step()
        assert seconds is not None, "trained"
        return self._batch_size / seconds

    def _seconds_per_step(self) -> float | None:
        """The median over the warm blocks, or what there is."""
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
    """The best rate of a square matrix product: ``gflops`` (2 n^3 operations each) and its ``size``.

    Sizes are taken in turn, each several times. One that would take too long by the rate of the smaller ones is left out.
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
    """GFLOP/s of a product of that size."""
    return 2 * size**3 / seconds / 1e9


def _seconds(size: int, gflops: float) -> float:
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
