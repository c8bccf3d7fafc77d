"""The state that changes while a run trains: net, optimizer and counters, and how checkpoints save and restore it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainer import fast, models, optimizers
from trainer.checkpoint import State
from trainer.config import RunConfig
from trainer.environment import Environment
from trainer.loader import Data
from trainer.progress import LossReports


@dataclass
class EarlyStopping:
    """The best validation accuracy so far and its epoch (the earliest, on ties)."""

    best: float = -1.0
    best_epoch: int = 0

    def update(self, accuracy: float, epoch: int) -> None:
        """Take the validation accuracy of an epoch into account."""
        if accuracy > self.best:
            self.best, self.best_epoch = accuracy, epoch

    def should_stop(self, config: RunConfig, epoch: int) -> bool:
        """Whether ``early_stopping_patience`` epochs have passed since the best one."""
        patience = config.early_stopping_patience
        return patience is not None and self.best_epoch > 0 and epoch - self.best_epoch >= patience


@dataclass
class Learner:
    """Net, optimizer and counters of a run. ``epoch`` and ``step`` are those in progress or last done, from 1."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: optimizers.WeightAverage | None  # the running mean of the weights, where the run has one
    scaler: torch.amp.GradScaler  # keeps gradients from vanishing in float16; does nothing in other precisions
    losses: LossReports = field(default_factory=LossReports)
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    epoch: int = 0
    step: int = 0

    @classmethod
    def create(cls, config: RunConfig, data: Data, environment: Environment) -> Learner:
        """The learner of a run before its first step."""
        model = models.build(config, data.image_shape, data.num_classes).to(data.device)
        model = fast.speed_up(model, environment.ways)
        average = None
        if config.weight_averaging is not None:
            average = optimizers.WeightAverage(config.weight_averaging, model, copy.deepcopy(model))
        scaler = torch.amp.GradScaler(data.device.type, enabled=environment.precision == "float16")
        optimizer = optimizers.build(config, model.parameters(), data.device, graphed=environment.graphs)
        return cls(model, optimizer, average, scaler)

    @property
    def evaluation_model(self) -> nn.Module:
        """The net that is evaluated: the one with averaged weights if the run has one."""
        return self.model if self.average is None else self.average.model

    def state(self) -> State:
        """What a checkpoint keeps. The tensors are those in use, not copies."""
        # ``model.*`` are always the weights to predict with. ``training.*`` are there where those are a running mean.
        tensors = {f"model.{name}": tensor for name, tensor in self.evaluation_model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"training.{name}": tensor for name, tensor in self.model.state_dict().items()}
        optimizer: dict[str, Any] = {}  # values that are not tensors
        for number, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{name}"] = value
                elif value is not None:
                    optimizer[f"{number}.{name}"] = value
        scalars = {
            "pending_losses": self.losses.pending,
            "patience": vars(self.early_stopping),
            "scaler": self.scaler.state_dict() or None,
            "optimizer": optimizer,
        }
        return State(self.epoch, self.step, tensors, copy.deepcopy(scalars))

    def restore(self, state: State) -> None:
        """Continue from a checkpoint: restore everything to what it was when ``state`` was called."""
        self.epoch, self.step = state.epoch, state.step
        self.model.load_state_dict(_without_prefix("model." if self.average is None else "training.", state.tensors))
        if self.average is not None:
            self.average.model.load_state_dict(_without_prefix("model.", state.tensors))
        if state.scalars["scaler"] is not None:
            self.scaler.load_state_dict(state.scalars["scaler"])
        self.losses.pending = [[*pair] for pair in state.scalars["pending_losses"]]
        self.early_stopping = EarlyStopping(**state.scalars["patience"])
        self._restore_optimizer({**_without_prefix("optimizer.", state.tensors), **state.scalars["optimizer"]})

    def _restore_optimizer(self, values: dict[str, Any]) -> None:
        """Restore the optimizer from ``values``, which are named "<parameter number>.<name>"."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, value in values.items():
            number, _dot, name = key.partition(".")
            parameter = parameters[int(number)]
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # Fused optimizers need state in the same memory layout as the parameter.
                value = torch.empty_like(parameter).detach().copy_(value)
            elif isinstance(value, Tensor):
                value = value.clone()  # otherwise PyTorch would change the tensor of the checkpoint
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
