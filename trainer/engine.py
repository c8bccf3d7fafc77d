"""The training loop. Read ``train`` first; what it calls follows in the order in which it happens.

``train`` is a generator of events. It writes no files: saving, logging and stopping are up to the caller (``runtime``).
After every step and after every batch of an evaluation it yields an event if one is due, else ``None``, so that the caller
can stop it there by closing the generator. A failure is an exception.
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
from trainer.fast.graphs import Result, StepFunction
from trainer.i18n import _
from trainer.learner import Learner
from trainer.loader import Data
from trainer.progress import Stopwatch, Tally
from trainer.randomness import stream_seed

STEPS_BETWEEN_LOSS_READS = 100
Events = Generator[Event | None, None, None]


def train(config: RunConfig, data: Data, environment: Environment, resume: State | None = None) -> Events:
    """Train a net and yield ``Started``, then ``Step`` and ``Epoch`` events, then ``Finished``.

    With ``resume`` training continues exactly after that checkpoint. The tensors of an ``Epoch`` event's state are those in
    use: save them before asking for the next event. Raises ``NonFiniteLoss``, or what PyTorch raises when memory runs out.
    """
    learner = Learner.create(config, data, environment)
    if resume is not None:
        learner.restore(resume)
    step = training_step(config, environment, learner)
    step = fast.speed_up_step(step, environment.ways, config.batch_size, data.device)
    yield _started_event(config, data, environment, learner)
    while learner.epoch < config.epochs and not learner.early_stopping.should_stop(config, learner.epoch):
        learner.epoch += 1
        # ``yield from`` passes the events of the function on to the caller, and then has the function's result.
        trained = yield from _train_epoch(config, data, learner, step)
        evaluated = yield from _evaluate(config, data, environment, learner)
        if evaluated.validation is not None:
            learner.early_stopping.update(evaluated.validation.accuracy, learner.epoch)
        if losses_event := learner.losses.event_at_epoch_end(learner.epoch, learner.step):
            yield losses_event
        yield _epoch_event(data, learner, trained, evaluated)
    if learner.losses.pending:
        yield learner.losses.event(learner.epoch, learner.step)
    yield Finished(learner.epoch, stopped_early=learner.epoch < config.epochs)


def training_step(config: RunConfig, environment: Environment, learner: Learner) -> StepFunction:
    """One step of training as a function: (images, labels) -> (loss, predicted classes), all on the device.

    A GPU may replay it from a recording (``trainer.fast.graphs``), so it must not branch on the values of tensors.
    """
    model, optimizer, scaler = learner.model, learner.optimizer, learner.scaler

    def step(images: Tensor, labels: Tensor) -> Result:
        optimizer.zero_grad()
        with environment.autocast():
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # the scaler acts in float16 only
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
    config: RunConfig, data: Data, learner: Learner, step: StepFunction
) -> Generator[Event | None, None, _Trained]:
    """One pass over the training images.

    Losses are read at steps 1, 101, 201, ... and at the end, because reading waits for the device.
    """
    stopwatch = Stopwatch(data.device)
    torch.manual_seed(stream_seed(config.seed, "dropout", learner.epoch))
    batches = loader.training_epoch(config, data, learner.epoch)
    tally = Tally(batches.labels, config.batch_size)
    learning_rate_at = schedule.learning_rates(config, config.epochs * loader.steps_per_epoch(config, data))
    for images, labels in batches:
        learner.step += 1
        optimizers.set_rate(learner.optimizer, learning_rate_at(learner.step))
        loss, predicted = step(images, labels)
        tally.add(loss, predicted)
        if learner.average is not None:
            learner.average.update(learner.step)
        if learner.step % STEPS_BETWEEN_LOSS_READS == 1:
            losses = _read_losses(tally, learner)
            learner.losses.add(learner.step, losses[-1])
        with stopwatch.paused():
            yield learner.losses.event_if_due(learner.epoch, learner.step)
    _read_losses(tally, learner)  # those since the last reading, which may not be finite either
    mean_loss, accuracy = tally.means()
    seconds = stopwatch.seconds()
    flops_per_image = layers.training_flops(config, data.image_shape, data.num_classes, batches.size)
    flops = len(batches.labels) * flops_per_image
    return _Trained(mean_loss, accuracy, learning_rate_at(learner.step), seconds, flops)


def _read_losses(tally: Tally, learner: Learner) -> list[float]:
    """The losses since the last call, up to the present step. Raises ``NonFiniteLoss`` and names the first bad step."""
    losses = tally.new_losses()
    for step, loss in enumerate(losses, start=learner.step - len(losses) + 1):
        if not math.isfinite(loss):
            raise _non_finite(_("The loss"), learner.epoch, step)
    return losses


def _non_finite(which_loss: str, epoch: int, step: int) -> NonFiniteLoss:
    """The failure of a run one of whose losses is NaN or infinite."""
    message = _("{loss} became NaN or infinite in epoch {epoch}, step {step}.")
    return NonFiniteLoss(
        message.format(loss=which_loss, epoch=epoch, step=f"{step:,}"),
        _("Lower the learning rate; a tenth of it is a good next try. The last finite checkpoint is kept."),
    )


@dataclass(frozen=True)
class _Evaluated:
    """The results of evaluating the net after an epoch; ``validation`` is None in a run without validation images."""

    test: Evaluation
    validation: Evaluation | None
    seconds: float


def _evaluate(
    config: RunConfig, data: Data, environment: Environment, learner: Learner
) -> Generator[Event | None, None, _Evaluated]:
    """Predict the classes of the validation and the test images."""
    stopwatch = Stopwatch(data.device)
    model = learner.evaluation_model
    validation = None
    if len(data.validation_labels):
        images, labels = data.validation_images, data.validation_labels
        validation = yield from evaluate(model, images, labels, data, config, environment)
    test = yield from evaluate(model, data.test_images, data.test_labels, data, config, environment)
    for result, which_loss in (
        (validation, _("The loss over the validation images")),
        (test, _("The loss over the test images")),
    ):
        if result is not None and not math.isfinite(result.loss):
            raise _non_finite(which_loss, learner.epoch, learner.step)
    return _Evaluated(test, validation, stopwatch.seconds())


# Events --------------------------------------------------------------------------------------------------------------


def _started_event(config: RunConfig, data: Data, environment: Environment, learner: Learner) -> Started:
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


def _epoch_event(data: Data, learner: Learner, trained: _Trained, evaluated: _Evaluated) -> Epoch:
    test, validation = evaluated.test, evaluated.validation
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
        evaluation_seconds=evaluated.seconds,
        images_per_second=len(data.train_indices) / trained.seconds,
        flops=trained.flops,
        validation_loss=None if validation is None else validation.loss,
        validation_accuracy=None if validation is None else validation.accuracy,
        state=learner.state(),
        predictions=to_keep(test, data.test_labels),
    )
