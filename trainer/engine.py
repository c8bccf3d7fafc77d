"""Training as a generator of events: a plain visible loop without effects outside memory.

``train`` yields ``Started``, then ``Step`` and ``Epoch`` events, at the end ``Finished``, and ``None`` where nothing is
to say: after every step and every batch of an evaluation, so that a caller can stop there by closing the generator.
Failing is an exception. Saving, logging and stopping belong to the caller (``runtime``).
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import describe, loader, models, optimizers, schedule
from trainer.checkpoint import State
from trainer.config import RunConfig
from trainer.environment import Environment
from trainer.evaluation import Evaluation, evaluate, to_keep
from trainer.events import Epoch, Event, Finished, Started, Step
from trainer.failures import NonFiniteLoss
from trainer.fast import convolution, graphs
from trainer.i18n import _
from trainer.loader import Data
from trainer.randomness import stream_seed

STEPS_BETWEEN_LOSSES = 100
_HEARTBEAT_SECONDS = 1.0
_MOST_LINES_A_SECOND = 4
_SECONDS_BETWEEN_LINES = 0.34  # three a second, which leaves one for the end of an epoch
Events = Generator[Event | None, None, None]


def train(config: RunConfig, data: Data, environment: Environment, resume: State | None = None) -> Events:
    """Train as ``config`` says and yield what happens; ``resume`` continues exactly after that checkpoint.

    Raises ``NonFiniteLoss``, or what PyTorch raises when memory runs out.
    """
    learner = Learner.create(config, data, environment)
    if resume is not None:
        learner.restore(resume)
    step = _step(config, data, environment, learner)
    yield _started(config, data, environment, learner)
    while learner.epoch < config.epochs and not learner.patience.is_over(config, learner.epoch):
        learner.epoch += 1
        trained = yield from _train_epoch(config, data, learner, step)
        yield from _test(config, data, environment, learner, trained)
    if learner.report.pending:
        yield learner.report.flush(learner.epoch, learner.step)
    yield Finished(learner.epoch, stopped_early=learner.epoch < config.epochs)


@dataclass(frozen=True)
class _Trained:
    """What one pass over the training images gave."""

    loss: float
    accuracy: float
    learning_rate: float
    seconds: float
    flops: float


def _step(config: RunConfig, data: Data, environment: Environment, learner: Learner) -> graphs.Step:
    """One step of training, in order: (images, labels) -> (loss, predicted classes), both on the device.

    On a GPU it may be replayed from a graph, so nothing in it may depend on a value on the device, or on the step.
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler

    def step(images: Tensor, labels: Tensor) -> graphs.Result:
        optimizer.zero_grad()
        with _autocast(data, environment):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        if scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        else:
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
        return loss.detach(), logits.detach().argmax(1)

    if not environment.graphs:
        return step
    return graphs.GraphedStep(step, config.batch_size, graphs.Recorder(data.device))


def _train_epoch(
    config: RunConfig, data: Data, learner: Learner, step: graphs.Step
) -> Generator[Event | None, None, _Trained]:
    """One pass over the training images; nothing but every 100th step waits for the device."""
    stopwatch = Stopwatch(data.device)
    torch.manual_seed(stream_seed(config.seed, "dropout", learner.epoch))
    epoch = loader.training_epoch(config, data, learner.epoch)
    count = len(epoch.labels)
    rate_of = schedule.learning_rates(config, config.epochs * loader.steps_per_epoch(config, data))
    losses = torch.empty(loader.steps_per_epoch(config, data), device=data.device)  # read every 100 steps, not each
    predicted = torch.empty(count, dtype=torch.int64, device=data.device)
    checked, seen, rate = 0, 0, 0.0
    for index, (images, labels) in enumerate(epoch):
        learner.step += 1
        rate = rate_of(learner.step)
        optimizers.set_rate(learner.optimizer, rate)
        losses[index], predicted[seen : seen + len(labels)] = step(images, labels)
        if learner.average is not None:
            learner.average.update(learner.step)
        seen += len(labels)
        if learner.step % STEPS_BETWEEN_LOSSES == 1:
            learner.report.add(learner.step, _checked(losses, checked, index, learner))
            checked = index + 1
        with stopwatch.paused():
            yield learner.report.due(learner.epoch, learner.step)
    _checked(losses, checked, len(losses) - 1, learner)
    sizes = torch.full((len(losses),), config.batch_size, dtype=torch.float64, device=data.device)
    sizes[-1] = count - config.batch_size * (len(losses) - 1)
    loss_sum, correct = float((losses * sizes).sum()), int((predicted == epoch.labels).sum())
    seconds = stopwatch.seconds()
    return _Trained(loss_sum / count, correct / count, rate, seconds, count * training_flops(config, data, epoch.size))


def training_flops(config: RunConfig, data: Data, size: tuple[int, int] | None = None) -> float:
    """Nominal floating-point operations to train on one image of (height, width) ``size``, or of the data's own.

    6 for each multiply-add of the forward pass: 2 there, and twice as many for both gradients of the backward pass. What
    the hardware does may be less: see ``trainer.fast.convolution``.
    """
    return 6.0 * float(describe.describe(config, data.image_shape, data.num_classes, size)["multiply_adds"])


def _test(
    config: RunConfig, data: Data, environment: Environment, learner: Learner, trained: _Trained
) -> Generator[Event | None, None, None]:
    """Ask the net about the validation and the test images, and yield the epoch."""
    stopwatch = Stopwatch(data.device)
    validation = None
    if len(data.validation_labels):
        images, labels = data.validation_images, data.validation_labels
        validation = yield from evaluate(learner.tested, images, labels, data, config, environment)
        learner.patience.note(validation.accuracy, learner.epoch)
    test = yield from evaluate(learner.tested, data.test_images, data.test_labels, data, config, environment)
    for result in (validation, test):
        if result is not None and not math.isfinite(result.loss):
            raise non_finite(learner.epoch, learner.step, where=_("The loss over the test images"))
    seconds = stopwatch.seconds()
    if lines := learner.report.at_epoch_end(learner.epoch, learner.step):
        yield lines
    yield _epoch(data, learner, trained, test, validation, seconds)


def _checked(losses: Tensor, begin: int, end: int, learner: Learner) -> float:
    """The loss at ``end``, after a look at all since ``begin``. Raises ``NonFiniteLoss`` and names the first bad step."""
    values = losses[begin : end + 1].tolist()
    for index, value in enumerate(values, start=begin):
        if not math.isfinite(value):
            raise non_finite(learner.epoch, learner.step - (end - index))
    return float(values[-1]) if values else math.nan


def non_finite(epoch: int, step: int, where: str | None = None) -> NonFiniteLoss:
    """The failure of a run whose loss is no number any more."""
    return NonFiniteLoss(
        _("{loss} became NaN or infinite in epoch {epoch}, step {step}.").format(
            loss=where or _("The loss"), epoch=epoch, step=f"{step:,}"
        ),
        _("Lower the learning rate; a tenth of it is a good next try. The last finite checkpoint is kept."),
    )


def _autocast(data: Data, environment: Environment) -> contextlib.AbstractContextManager[Any]:
    dtype = environment.autocast_dtype
    return contextlib.nullcontext() if dtype is None else torch.autocast(data.device.type, dtype)


def _started(config: RunConfig, data: Data, environment: Environment, learner: Learner) -> Started:
    steps = loader.steps_per_epoch(config, data)
    return Started(
        num_parameters=models.count_parameters(learner.model), device=environment.device,
        precision=environment.precision, num_threads=environment.num_threads, num_train=len(data.train_indices),
        num_validation=len(data.validation_labels), num_test=len(data.test_labels), steps_per_epoch=steps,
        total_steps=steps * config.epochs, first_epoch=learner.epoch + 1, train_fingerprint=data.train_fingerprint,
        test_fingerprint=data.test_fingerprint, class_names=data.class_names, image_shape=[*data.image_shape],
    )  # fmt: skip


def _epoch(
    data: Data, learner: Learner, trained: _Trained, test: Evaluation, validation: Evaluation | None, seconds: float
) -> Epoch:
    return Epoch(
        epoch=learner.epoch, step=learner.step, train_loss=trained.loss, train_accuracy=trained.accuracy,
        test_loss=test.loss, test_accuracy=test.accuracy, test_correct=test.correct, test_total=test.total,
        learning_rate=trained.learning_rate, seconds=trained.seconds, evaluation_seconds=seconds,
        images_per_second=len(data.train_indices) / trained.seconds, flops=trained.flops,
        validation_loss=None if validation is None else validation.loss,
        validation_accuracy=None if validation is None else validation.accuracy,
        state=learner.state(), predictions=to_keep(test, data.test_labels),
    )  # fmt: skip


class Stopwatch:
    """Seconds by the monotonic clock, with the device synchronised at both ends and the caller's time left out."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._left_out = device, 0.0
        self._synchronize()
        self._begin = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.monotonic()
        yield
        self._left_out += time.monotonic() - begin

    def seconds(self) -> float:
        self._synchronize()
        return max(time.monotonic() - self._begin - self._left_out, 1e-9)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()


@dataclass
class Report:
    """When to say where training is: at most four lines in any second, at least one a second, no loss forgotten."""

    pending: list[list[float]] = field(default_factory=list)
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_LINES_A_SECOND))

    def add(self, step: int, loss: float) -> None:
        self.pending.append([step, float(f"{loss:.6g}")])

    def due(self, epoch: int, step: int) -> Step | None:
        """The line that is due after a step, or None."""
        wait = _SECONDS_BETWEEN_LINES if self.pending else _HEARTBEAT_SECONDS
        if self._times and (time.monotonic() - self._times[-1] < wait or self._is_full()):
            return None
        return self.flush(epoch, step)

    def at_epoch_end(self, epoch: int, step: int) -> Step | None:
        """The losses still pending, where a line is left in this second; else the checkpoint keeps them."""
        return None if self._is_full() or not self.pending else self.flush(epoch, step)

    def _is_full(self) -> bool:
        """Whether the last second has its four lines."""
        return len(self._times) == _MOST_LINES_A_SECOND and time.monotonic() - self._times[0] < 1

    def flush(self, epoch: int, step: int) -> Step:
        """A line now."""
        losses, self.pending = self.pending, []
        self._times.append(time.monotonic())
        return Step(epoch, step, losses)


@dataclass
class Patience:
    """The best validation accuracy so far and its epoch; ties stay with the earlier one."""

    best: float = -1.0
    best_epoch: int = 0

    def note(self, accuracy: float, epoch: int) -> None:
        if accuracy > self.best:
            self.best, self.best_epoch = accuracy, epoch

    def is_over(self, config: RunConfig, epoch: int) -> bool:
        """Whether ``early_stopping_patience`` epochs went by without progress."""
        patience = config.early_stopping_patience
        return patience is not None and self.best_epoch > 0 and epoch - self.best_epoch >= patience


@dataclass
class Learner:
    """All that changes while training: net, optimizer, counters. ``epoch`` and ``step`` count what is done."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: optimizers.WeightAverage | None
    scaler: torch.amp.GradScaler | None
    report: Report = field(default_factory=Report)
    patience: Patience = field(default_factory=Patience)
    epoch: int = 0
    step: int = 0

    @classmethod
    def create(cls, config: RunConfig, data: Data, environment: Environment) -> Learner:
        model = models.pool_before_relu(models.build(config, data.image_shape, data.num_classes)).to(data.device)
        if environment.fused_norm:
            from trainer.fast import norm_pool  # here, because Numba takes 0.2 s to import

            model = norm_pool.fuse(model)
        if environment.convolution in ("winograd", "columns"):
            convolution.use_products(model, environment.convolution)
        elif environment.convolution == "fused":
            from trainer.fast.conv_pool import fuse  # here, as above

            model = fuse(model)
        if environment.channels_last:  # convolutions follow their weights, so the images need no change
            model = model.to(memory_format=torch.channels_last)
        average = None
        if config.weight_averaging is not None:
            average = optimizers.WeightAverage(config.weight_averaging, model, copy.deepcopy(model))
        scaler = torch.amp.GradScaler(data.device.type) if environment.precision == "float16" else None
        optimizer = optimizers.build(config, model.parameters(), data.device, graphed=environment.graphs)
        return cls(model, optimizer, average, scaler)

    @property
    def tested(self) -> nn.Module:
        """The net that is evaluated: the running mean where there is one."""
        return self.model if self.average is None else self.average.model

    def state(self) -> State:
        """What a checkpoint keeps; the tensors are those in use, not copies."""
        tensors = {f"model.{name}": tensor for name, tensor in self.tested.state_dict().items()}
        if self.average is not None:
            tensors |= {f"training.{name}": tensor for name, tensor in self.model.state_dict().items()}
        scalars: dict[str, Any] = {
            "pending_losses": self.report.pending, "patience": vars(self.patience),
            "scaler": None if self.scaler is None else self.scaler.state_dict(), "optimizer": {},
        }  # fmt: skip
        for number, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{number}.{name}"] = value
                elif value is not None:
                    scalars["optimizer"][f"{number}.{name}"] = value
        return State(self.epoch, self.step, tensors, copy.deepcopy(scalars))

    def restore(self, state: State) -> None:
        """Take over everything from a checkpoint."""
        self.epoch, self.step = state.epoch, state.step
        own = "model." if self.average is None else "training."
        self.model.load_state_dict(_below(state.tensors, own))
        if self.average is not None:
            self.average.model.load_state_dict(_below(state.tensors, "model."))
        if self.scaler is not None and state.scalars["scaler"] is not None:
            self.scaler.load_state_dict(state.scalars["scaler"])
        self.report.pending = [[*pair] for pair in state.scalars["pending_losses"]]
        self.patience = Patience(**state.scalars["patience"])
        self._restore_optimizer({**_below(state.tensors, "optimizer."), **state.scalars["optimizer"]})

    def _restore_optimizer(self, values: dict[str, Any]) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, value in values.items():
            number, _dot, name = key.partition(".")
            like = parameters[int(number)]
            if isinstance(value, Tensor) and value.shape == like.shape:
                # fused kernels need the parameter's memory order
                value = torch.empty_like(like).detach().copy_(value)
            elif isinstance(value, Tensor):
                value = value.clone()  # PyTorch would go on with the checkpoint's own
            state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _below(tensors: Any, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
