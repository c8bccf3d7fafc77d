"""How long a run trains and at which learning rates: images and steps per epoch, and the learning rate of every step.

The engine trains by these functions, and the start form draws and estimates with the same ones. Pure functions of the
configuration; imports neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config import RunConfig

_DEFAULT_PEAK = 0.25


def images_per_epoch(num_images: int, config: RunConfig) -> int:
    """Training images of one epoch, of the ``num_images`` that the data set's training split has.

    Validation images are held out first; ``train_fraction`` is the part of the rest that is used.
    """
    held_out = rounded_part(num_images, config.validation_fraction)
    return rounded_part(num_images - held_out, config.train_fraction)


def steps_per_epoch(num_images: int, config: RunConfig) -> int:
    """Optimizer steps of one epoch, for a training split of ``num_images`` images; the last batch may be short."""
    return num_batches(images_per_epoch(num_images, config), config.batch_size)


def num_batches(num_images: int, batch_size: int) -> int:
    """Batches that ``num_images`` images make, including a short last one."""
    return -(-num_images // batch_size)


def rounded_part(count: int, fraction: float) -> int:
    """``fraction`` of ``count``, rounded; at least 1, except where the fraction or the count is 0."""
    return min(count, max(1, round(count * fraction))) if fraction else 0


def learning_rates(config: RunConfig, total_steps: int) -> Callable[[int], float]:
    """A function that gives the learning rate of each step, 1 to ``total_steps``.

    With r the configured rate, p = ``peak_at`` and t = (step - 1/2) / total_steps, the rate is

    - constant: r
    - cosine: r (1 + cos(pi t)) / 2, from r to almost 0 (Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with
      Warm Restarts", 2017; without the restarts)
    - one_cycle: r t / p up to p, then r (1 - t) / (1 - p), two straight lines (Smith and Topin, "Super-Convergence",
      2018; without the cycle of the momentum)
    """
    rate, peak = config.learning_rate, config.peak_at or _DEFAULT_PEAK

    def progress(step: int) -> float:
        return (step - 0.5) / total_steps

    if config.schedule == "cosine":
        return lambda step: rate * (1 + math.cos(math.pi * progress(step))) / 2
    if config.schedule == "one_cycle":
        return lambda step: rate * min(progress(step) / peak, (1 - progress(step)) / (1 - peak))
    return lambda step: rate
