"""Optimizers, and the running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import RunConfig

_A, _B, _C, _ITERATIONS = 3.4445, -4.7750, 2.0315, 5  # Jordan et al. 2024


def build(
    config: RunConfig, parameters: Iterable[nn.Parameter], device: torch.device, *, graphed: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of ``config``, with fused kernels if available (they save a tenth of a small net's step).

    With ``graphed`` the learning rate is a tensor on the device, because a CUDA graph would replay a fixed number.
    """
    decay, fused = config.weight_decay, device.type in ("cpu", "cuda")
    rate: Any = torch.tensor(config.learning_rate, device=device) if graphed else config.learning_rate
    momentum, nesterov = config.momentum or 0.0, bool(config.nesterov)
    if config.optimizer == "muon":
        return Muon(parameters, lr=rate, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=momentum, nesterov=nesterov, weight_decay=decay, fused=fused
        )
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused, capturable=graphed)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, without synchronizing with the GPU."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Muon(torch.optim.Optimizer):
    """Muon for the weights of all layers but the last, and SGD for all other parameters.

    Muon is momentum whose steps are orthogonal matrices (Jordan et al. 2024, "Muon: An optimizer for hidden layers in
    neural networks"). A weight [out, in, ...] is treated as a matrix [out, n]. Its momentum m = momentum * m + gradient
    (with ``nesterov``: gradient + momentum * m) is replaced by the nearest matrix with orthonormal rows or columns,
    times sqrt(max(1, out / n)); that is the step. Only these weights decay, by the factor 1 - lr * weight_decay. The
    last layer, biases and the parameters of BatchNorm are updated by SGD. Parameters must be given in the order of
    their layers, so that the last weight is that of the last layer. PyTorch's ``Muon`` does not accept convolution
    filters, and iterates in bfloat16, which is slow on a CPU without bfloat16 instructions.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, nesterov: bool, weight_decay: float
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters once; those without a gradient are not changed."""
        for group in self.param_groups:
            hidden = {id(parameter) for parameter in [one for one in group["params"] if one.ndim > 1][:-1]}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, id(parameter) in hidden)

    def _update(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any], hidden: bool) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        step = gradient.add(mean, alpha=group["momentum"]) if group["nesterov"] else mean
        rate = group["lr"]
        if hidden:
            matrices = step.movedim(1, -1)  # the memory order of channels_last
            step = orthogonal(matrices.flatten(1)).view(matrices.shape).movedim(-1, 1)
            parameter.mul_(1 - rate * group["weight_decay"])
            rate = rate * math.sqrt(max(1.0, len(parameter) / parameter[0].numel()))
        if isinstance(rate, Tensor):
            parameter.addcmul_(step, rate, value=-1)
        else:
            parameter.sub_(step, alpha=rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate the nearest matrix [M, N] with orthonormal rows or columns, in float32.

    Singular values above about a hundredth of the matrix's norm become 0.7 to 1.2; smaller ones grow, but stay smaller.

    The method is five Newton-Schulz iterations X = a X + b X X' X + c X X' X X' X with Jordan's coefficients. They are
    polynomials in G = X X', so they are composed on G [min(M, N), min(M, N)] and applied to the matrix once. Rounding
    errors of G grow with each iteration, so its products need the precision of float32.
    """
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    gram = wide @ wide.T
    factor = product = _factor(gram)
    for _iteration in range(_ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    result: Tensor = product @ wide
    return result if len(matrix) <= matrix.shape[1] else result.T


def _factor(gram: Tensor) -> Tensor:
    """The factor a I + b G + c G G of one iteration."""
    factor = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
    factor.diagonal().add_(_A)
    return factor


class WeightAverage:
    """A running mean of weights and BatchNorm statistics, kept in a second model of the same shape.

    After step s: mean += (1 - d) * (weights - mean), with d = min(decay, (1 + s) / (10 + s)), so that the first steps
    lose their influence quickly (the rule of TensorFlow's ExponentialMovingAverage with num_updates).
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
