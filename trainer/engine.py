"""The training loop. Read ``train`` first; what it calls follows in the order in which it happens.

``train`` is a generator of events with no effect outside memory. It also yields ``None`` after every step and after every
batch of an evaluation, so that the caller can stop it there by closing the generator. A failure is an exception. Saving,
logging and stopping are up to the caller (``runtime``).
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import fast, layers, loader, models, optimizers, schedule
from trainer.checkpoint import State
from trainer.config import RunConfig
from trainer.environment import Environment
from trainer.evaluation import Evaluation, evaluate, to_keep
from trainer.events import Epoch, Event, Finished, Started
from trainer.failures import NonFiniteLoss
from trainer.fast.graphs import Result, Step
from trainer.i18n import _
from trainer.learner import Learner
from trainer.loader import Data
from trainer.progress import Stopwatch, Tally
from trainer.randomness import stream_seed

STEPS_BETWEEN_LOSSES = 100
Events = Generator[Event | None, None, None]


def train(config: RunConfig, data: Data, environment: Environment, resume: State | None = None) -> Events:
    """Train a net and yield ``Started``, then ``Step`` and ``Epoch`` events, then ``Finished``.

    With ``resume`` training continues exactly after that checkpoint. Raises ``NonFiniteLoss``, or what PyTorch raises when
    memory runs out.
    """
    learner = Learner.create(config, data, environment)
    if resume is not None:
        learner.restore(resume)
    step = fast.speed_up_step(
        training_step(config, environment, learner), environment.ways, config.batch_size, data.device
    )
    yield _started(config, data, environment, learner)
    while learner.epoch < config.epochs and not learner.patience.is_over(config, learner.epoch):
        learner.epoch += 1
        trained = yield from _train_epoch(config, data, learner, step)
        tested = yield from _test(config, data, environment, learner)
        if losses := learner.report.at_epoch_end(learner.epoch, learner.step):
            yield losses
        yield _epoch(data, learner, trained, tested)
    if learner.report.pending:
        yield learner.report.flush(learner.epoch, learner.step)
    yield Finished(learner.epoch, stopped_early=learner.epoch < config.epochs)


def training_step(config: RunConfig, environment: Environment, learner: Learner) -> Step:
    """One step of training as a function: (images, labels) -> (loss, predicted classes), all on the device.

    A GPU may replay it from a recording (``trainer.fast.graphs``), so it must do the same whatever the numbers are.
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler

    def step(images: Tensor, labels: Tensor) -> Result:
        optimizer.zero_grad()
        with environment.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return loss.detach(), logits.detach().argmax(1)

    return step


@dataclass(frozen=True)
class _Trained:
    """The result of one pass over the training images."""

    loss: float
    accuracy: float
    learning_rate: float  # of the last step
    seconds: float
    flops: float


def _train_epoch(
    config: RunConfig, data: Data, learner: Learner, step: Step
) -> Generator[Event | None, None, _Trained]:
    """One pass over the training images. Only every 100th step waits for the device, to read the losses."""
    stopwatch = Stopwatch(data.device)
    torch.manual_seed(stream_seed(config.seed, "dropout", learner.epoch))
    epoch = loader.training_epoch(config, data, learner.epoch)
    tally = Tally(epoch.labels, config.batch_size)
    rate_of = schedule.learning_rates(config, config.epochs * tally.num_steps)
    for images, labels in epoch:
        learner.step += 1
        optimizers.set_rate(learner.optimizer, rate_of(learner.step))
        loss, predicted = step(images, labels)
        tally.add(loss, predicted)
        if learner.average is not None:
            learner.average.update(learner.step)
        if learner.step % STEPS_BETWEEN_LOSSES == 1:
            learner.report.add(learner.step, _finite_losses(tally, learner)[-1])
        with stopwatch.paused():
            yield learner.report.due(learner.epoch, learner.step)
    _finite_losses(tally, learner)
    mean_loss, accuracy = tally.means()
    seconds = stopwatch.seconds()
    flops = len(epoch.labels) * layers.training_flops(config, data.image_shape, data.num_classes, epoch.size)
    return _Trained(mean_loss, accuracy, rate_of(learner.step), seconds, flops)


def _finite_losses(tally: Tally, learner: Learner) -> list[float]:
    """The losses since the last call, up to the present step. Raises ``NonFiniteLoss`` and names the first bad step."""
    losses = tally.new_losses()
    for step, loss in enumerate(losses, start=learner.step - len(losses) + 1):
        if not math.isfinite(loss):
            raise _non_finite(_("The loss"), learner.epoch, step)
    return losses


def _non_finite(loss: str, epoch: int, step: int) -> NonFiniteLoss:
    """The failure of a run; ``loss`` says which loss is NaN or infinite."""
    message = _("{loss} became NaN or infinite in epoch {epoch}, step {step}.")
    return NonFiniteLoss(
        message.format(loss=loss, epoch=epoch, step=f"{step:,}"),
        _("Lower the learning rate; a tenth of it is a good next try. The last finite checkpoint is kept."),
    )


@dataclass(frozen=True)
class _Tested:
    """The result of evaluating the net after an epoch; ``validation`` is None in a run without validation images."""

    test: Evaluation
    validation: Evaluation | None
    seconds: float


def _test(
    config: RunConfig, data: Data, environment: Environment, learner: Learner
) -> Generator[Event | None, None, _Tested]:
    """Predict the classes of the validation and the test images."""
    stopwatch = Stopwatch(data.device)
    model, validation = learner.tested_model, None
    if len(data.validation_labels):
        images, labels = data.validation_images, data.validation_labels
        validation = yield from evaluate(model, images, labels, data, config, environment)
        learner.patience.note(validation.accuracy, learner.epoch)
    test = yield from evaluate(model, data.test_images, data.test_labels, data, config, environment)
    for result in (validation, test):
        if result is not None and not math.isfinite(result.loss):
            raise _non_finite(_("The loss over the test images"), learner.epoch, learner.step)
    return _Tested(test, validation, stopwatch.seconds())


# Events --------------------------------------------------------------------------------------------------------------


def _started(config: RunConfig, data: Data, environment: Environment, learner: Learner) -> Started:
    steps = loader.steps_per_epoch(config, data)
    return Started(
        num_parameters=models.count_parameters(learner.model),
        device=environment.device,
        precision=environment.precision,
        num_threads=environment.num_threads,
        num_train=len(data.train_indices),
        num_validation=len(data.validation_labels),
        num_test=len(data.test_labels),
        steps_per_epoch=steps,
        total_steps=steps * config.epochs,
        first_epoch=learner.epoch + 1,
        train_fingerprint=data.train_fingerprint,
        test_fingerprint=data.test_fingerprint,
        class_names=data.class_names,
        image_shape=[*data.image_shape],
    )


def _epoch(data: Data, learner: Learner, trained: _Trained, tested: _Tested) -> Epoch:
    test, validation = tested.test, tested.validation
    return Epoch(
        epoch=learner.epoch,
        step=learner.step,
        train_loss=trained.loss,
        train_accuracy=trained.accuracy,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        test_correct=test.correct,
        test_total=test.total,
        learning_rate=trained.learning_rate,
        seconds=trained.seconds,
        evaluation_seconds=tested.seconds,
        images_per_second=len(data.train_indices) / trained.seconds,
        flops=trained.flops,
        validation_loss=None if validation is None else validation.loss,
        validation_accuracy=None if validation is None else validation.accuracy,
        state=learner.state(),
        predictions=to_keep(test, data.test_labels),
    )
