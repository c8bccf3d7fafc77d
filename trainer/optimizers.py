"""Optimizers, learning-rate schedules as pure functions of the step, and the running mean of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from trainer.config import RunConfig


def build(config: RunConfig, parameters: Iterable[nn.Parameter], device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of ``config``, PyTorch's own. Fused kernels where there are any: a tenth of a small net's step."""
    rate, decay, fused = config.learning_rate, config.weight_decay, device.type in ("cpu", "cuda")
    if config.optimizer == "sgd":
        momentum, nesterov = config.momentum or 0.0, bool(config.nesterov)
        return torch.optim.SGD(
            parameters, lr=rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=fused
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)


def learning_rates(config: RunConfig, total_steps: int) -> Callable[[int], float]:
    """The learning rate of each step 1 .. T as a function of the step alone.

    With r the configured rate and t = (step - 1/2) / T:

    - constant: r
    - cosine: r (1 + cos(pi t)) / 2, from r to almost 0 (Loshchilov and Hutter 2017, without restarts)
    - one_cycle: r t / p up to p = ``peak_at``, then r (1 - t) / (1 - p): straight lines (Smith and Topin 2018,
      without the momentum cycle)
    """
    rate, peak = config.learning_rate, config.peak_at or 0.25

    def part(step: int) -> float:
        return (step - 0.5) / total_steps

    if config.schedule == "cosine":
        return lambda step: rate * (1 + math.cos(math.pi * part(step))) / 2
    if config.schedule == "one_cycle":
        return lambda step: rate * min(part(step) / peak, (1 - part(step)) / (1 - peak))
    return lambda step: rate


class WeightAverage:
    """A running mean of weights and BatchNorm statistics, kept in a second model of the same shape.

    After step s: mean += (1 - d) (weights - mean), with d = min(decay, (1 + s) / (10 + s)), so that the first steps
    do not weigh forever (the rule of TensorFlow's ExponentialMovingAverage with num_updates).
    """

    def __init__(self, decay: float, source: nn.Module, target: nn.Module) -> None:
        self.decay, self.model = decay, target
        pairs = [(new, old) for new, old in zip(_tensors(source), _tensors(target), strict=True)]
        self._new = [new for new, _ in pairs if new.is_floating_point()]
        self._old = [old for _, old in pairs if old.is_floating_point()]
        self._counts = [(old, new) for new, old in pairs if not new.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._old, self._new, 1 - decay)
        for old, new in self._counts:
            old.copy_(new)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in [*model.parameters(), *model.buffers()]]
