"""The training loop: equal to a plain loop, repeatable, resumable bit for bit, honest about NaN."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import engine, fast, loader, models
from trainer.checkpoint import State
from trainer.config import RunConfig
from trainer.environment import Environment, apply
from trainer.events import Epoch, Event, Finished, Started, Step
from trainer.failures import NonFiniteLoss
from trainer.loader import Data
from trainer.progress import LossReports

pytestmark = [pytest.mark.arithmetic, pytest.mark.slow]

MakeConfig = Callable[..., RunConfig]
MakeData = Callable[..., Data]


def copied(state: State) -> State:
    return State(
        state.epoch, state.step, {name: tensor.clone() for name, tensor in state.tensors.items()}, state.scalars
    )


def train(config: RunConfig, data: Data, resume: State | None = None, **fields: Any) -> list[Event]:
    """All events but the Nones; the states of the epochs are copies."""
    events = []
    for event in engine.train(
        config, data, Environment(**{"device": "cpu", "precision": "float32", "num_threads": 1, **fields}), resume
    ):
        if isinstance(event, Epoch):
            event = Epoch(**{**vars(event), "state": copied(event.state)})
        if event is not None:
            events.append(event)
    return events


def epochs(events: list[Event]) -> list[Epoch]:
    return [event for event in events if isinstance(event, Epoch)]


def assert_same_tensors(one: State, other: State) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    for name in one.tensors:
        assert torch.equal(one.tensors[name], other.tensors[name]), name


def test_weights_equal_a_plain_loop(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(model="cnn", epochs=2, label_smoothing=0.1, weight_decay=0.01)
    data = make_data(config)
    net = models.build(config, data.image_shape, data.num_classes)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.5, weight_decay=0.01, fused=True)
    for epoch in (1, 2):
        for images, labels in loader.training_epoch(config, data, epoch):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels, label_smoothing=0.1).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    trained = epochs(train(config, data))[-1].state.tensors
    for name, tensor in net.state_dict().items():
        assert torch.equal(trained[f"model.{name}"], tensor), name


def test_learns_and_reports(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(epochs=12, learning_rate=0.05, momentum=0.9)
    events = train(config, make_data(config))
    started, last = events[0], epochs(events)[-1]
    assert isinstance(started, Started)
    assert (started.num_train, started.num_test, started.steps_per_epoch, started.total_steps) == (104, 40, 7, 84)
    assert [event.epoch for event in epochs(events)] == [*range(1, 13)]
    assert last.step == 84
    assert last.test_accuracy == last.test_correct / last.test_total == 1.0
    assert last.predictions["predicted"].dtype == np.uint16
    assert last.predictions["confidence"].dtype == np.float32
    assert last.predictions["log_probabilities"].dtype == np.float16
    assert last.predictions["log_probabilities"].shape == (40, 4)
    assert events[-1] == Finished(12)


def test_train_loss_is_the_mean_over_images(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(learning_rate=1e-9, label_smoothing=0.2, batch_size=30)
    data = make_data(config)
    net = models.build(config, data.image_shape, data.num_classes)
    with torch.no_grad():
        logits = net(loader.net_input(data.train_images, data))
    first = epochs(train(config, data))[0]
    expected = F.cross_entropy(logits, data.train_labels, label_smoothing=0.2).item()
    assert first.train_loss == pytest.approx(expected, rel=1e-5)
    assert first.train_accuracy == pytest.approx(float((logits.argmax(1) == data.train_labels).double().mean()))


def test_step_losses_are_those_of_every_hundredth_step(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(epochs=3, batch_size=1)
    events = train(config, make_data(config))
    losses = [pair for event in events if isinstance(event, Step) for pair in event.losses]
    assert [step for step, _loss in losses] == [1, 101, 201, 301]


RECIPES: dict[str, dict[str, Any]] = {
    "sgd with momentum": {"momentum": 0.9, "nesterov": True},
    "adam": {"optimizer": "adam"},
    "adamw, average, crop": {"optimizer": "adamw", "weight_averaging": 0.9, "augmentation": "crop_flip"},
    "muon, average": {"optimizer": "muon", "momentum": 0.6, "nesterov": True, "weight_averaging": 0.9},
    "muon, batch norm": {"model": "vgg", "width": 2, "optimizer": "muon", "momentum": 0.6, "nesterov": True},
    "batch norm": {"model": "vgg", "width": 1, "weight_averaging": 0.9},
    "dropout": {"model": "vgg16", "width": 1, "learning_rate": 0.001, "batch_size": 52},
    "one cycle, noise, validation": {
        "schedule": "one_cycle",
        "label_noise": 0.3,
        "validation_fraction": 0.2,
        "early_stopping_patience": 3,
    },
    "permuted, flipped": {"permute_pixels": True, "flip_averaging": True, "normalization": "half"},
}


@pytest.mark.parametrize("recipe", RECIPES, ids=[*RECIPES])
def test_resumed_equals_uninterrupted(make_config: MakeConfig, make_data: MakeData, recipe: str) -> None:
    config = make_config(epochs=3, **RECIPES[recipe])
    data = make_data(config)
    whole = epochs(train(config, data))
    torch.manual_seed(99)
    rest = epochs(train(config, data, resume=whole[0].state))
    assert [event.epoch for event in rest] == [2, 3]
    for one, other in zip(whole[1:], rest, strict=True):
        assert_same_tensors(one.state, other.state)
        assert (one.train_loss, one.test_loss, one.test_correct) == (
            other.train_loss,
            other.test_loss,
            other.test_correct,
        )
        assert (one.predictions["confidence"] == other.predictions["confidence"]).all()


VGG_WAYS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32", "channels_last": True, "convolution": "winograd", "fused_norm": True},
    "bfloat16": {"precision": "bfloat16", "channels_last": True, "convolution": "columns", "fused_norm": True},
}


@pytest.mark.parametrize("precision", VGG_WAYS)
def test_the_fast_way_to_train_vgg_learns_and_resumes(
    make_config: MakeConfig, make_data: MakeData, precision: str
) -> None:
    config = make_config(
        model="vgg", width=16, epochs=3, learning_rate=0.02, momentum=0.9, augmentation="crop_flip_cutout"
    )
    data = make_data(config, shape=(3, 32, 32))
    whole = epochs(train(config, data, **VGG_WAYS[precision]))
    assert whole[-1].train_loss < 0.7 * whole[0].train_loss
    rest = epochs(train(config, data, resume=whole[0].state, **VGG_WAYS[precision]))
    assert_same_tensors(rest[-1].state, whole[-1].state)


def _loss_and_gradient(
    net: nn.Sequential, images: Tensor, labels: Tensor, environment: Environment
) -> tuple[float, Tensor]:
    """Loss of a batch, and its gradient by all parameters in one vector, in float64.

    Without the biases in front of BatchNorm, which takes them away again: their gradient is rounding.
    """
    with environment.autocast():
        logits = net(images)
    loss = F.cross_entropy(logits.double(), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [
        parameter.grad.double().flatten()
        for name, parameter in net.named_parameters()
        if parameter.grad is not None and not re.fullmatch(r"conv\d+\.bias", name)
    ]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("precision", VGG_WAYS)
def test_the_fast_way_to_train_vgg_is_as_exact_as_pytorchs(make_config: MakeConfig, precision: str) -> None:
    """Loss and gradient of one batch against float64.

    Not of a whole training: in bfloat16 rounding chooses other largest pixels, so that even PyTorch's own gradient is off
    by a quarter, and after an epoch the loss depends on the instructions of the CPU.
    """
    built = models.build(make_config(model="vgg", width=16), (3, 32, 32), 4)
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    plain, faster = (
        Environment("cpu", precision, 1, channels_last=True),
        Environment("cpu", num_threads=1, **VGG_WAYS[precision]),
    )
    exact_loss, exact = _loss_and_gradient(
        copy.deepcopy(built).double(), images.double(), labels, Environment("cpu", "float32", 1)
    )
    errors = []
    for environment in (plain, faster):
        net = fast.speed_up(copy.deepcopy(built), environment.ways)
        loss, gradient = _loss_and_gradient(net, images, labels, environment)
        assert loss == pytest.approx(exact_loss, rel=1e-5 if precision == "float32" else 0.02)
        errors.append(float((gradient - exact).norm() / exact.norm()))
    assert errors[1] < 3 * errors[0]
    assert errors[1] < (1e-4 if precision == "float32" else 0.5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_memory_order_changes_speed_only(make_config: MakeConfig, make_data: MakeData, optimizer: str) -> None:
    config = make_config(model="lenet", epochs=2, optimizer=optimizer, learning_rate=0.01, weight_averaging=0.9)
    data = make_data(config, shape=(3, 20, 16))
    plain, last = (epochs(train(config, data, channels_last=order)) for order in (False, True))
    for name, tensor in plain[-1].state.tensors.items():
        torch.testing.assert_close(last[-1].state.tensors[name], tensor, rtol=1e-3, atol=1e-4)
    saved = {name: tensor.contiguous() for name, tensor in last[0].state.tensors.items()}  # as a file gives it back
    state = State(1, last[0].state.step, saved, last[0].state.scalars)
    assert_same_tensors(epochs(train(config, data, resume=state, channels_last=True))[-1].state, last[-1].state)


def test_same_config_twice_is_the_same(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(model="cnn", augmentation="crop_flip")
    first, again, other = (
        epochs(train(one, make_data(one)))[0] for one in (config, config, make_config(model="cnn", seed=1))
    )
    assert_same_tensors(first.state, again.state)
    assert first.train_loss == again.train_loss
    assert first.train_loss != other.train_loss


def test_averaged_weights_are_tested_and_both_are_kept(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(weight_averaging=0.9)
    data = make_data(config)
    epoch = epochs(train(config, data))[0]
    net = models.build(config, data.image_shape, data.num_classes).eval()
    net.load_state_dict({k.removeprefix("model."): v for k, v in epoch.state.tensors.items() if k.startswith("model.")})
    with torch.no_grad():
        answers = net(loader.net_input(data.test_images, data)).argmax(1)
    assert int((answers == data.test_labels).sum()) == epoch.test_correct
    assert not torch.equal(epoch.state.tensors["model.linear1.weight"], epoch.state.tensors["training.linear1.weight"])


def test_early_stopping_ends_the_run(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(epochs=50, learning_rate=1e-9, validation_fraction=0.2, early_stopping_patience=2)
    events = train(config, make_data(config))
    assert [event.epoch for event in epochs(events)] == [1, 2, 3]
    assert events[-1] == Finished(3, stopped_early=True)
    assert train(config, make_data(config), resume=epochs(events)[-1].state)[1:] == [Finished(3, stopped_early=True)]


@pytest.mark.parametrize("seed", range(4))
def test_nan_fails_by_name(make_config: MakeConfig, make_data: MakeData, seed: int) -> None:
    config = make_config(learning_rate=1e9, seed=seed)
    data = make_data(config)
    data.test_images[0] = 0
    with pytest.raises(NonFiniteLoss, match="epoch 1, step") as failure:
        train(config, Data(**{**vars(data), "scale": data.scale * torch.inf}))
    assert "Lower the learning rate" in failure.value.advice


def test_closing_stops_at_the_next_step(make_config: MakeConfig, make_data: MakeData, environment: Environment) -> None:
    config = make_config(epochs=100)
    events = engine.train(config, make_data(config), environment)
    for _number in range(3):
        next(events)
    events.close()
    assert next(events, None) is None


def test_bfloat16_trains_on_the_cpu(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(model="cnn", epochs=2)
    epoch = epochs(train(config, make_data(config), precision="bfloat16"))[-1]
    assert all(tensor.dtype == torch.float32 for tensor in epoch.state.tensors.values())


def test_more_than_64_classes_keep_the_five_best(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config()
    data = make_data(config)
    wide = Data(**{**vars(data), "class_names": [str(number) for number in range(100)]})
    answers = epochs(train(config, wide))[0].predictions
    assert "log_probabilities" not in answers
    assert answers["best_classes"].shape == answers["best_log_probabilities"].shape == (40, 5)
    assert answers["label_log_probability"].shape == (40,)
    assert (answers["best_classes"][:, 0] == answers["predicted"]).all()


def test_at_most_four_lines_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    report, times, losses = LossReports(), [], 0
    for step in range(1, 2000):
        clock[0] += 0.004
        report.add(step, 1.0)
        line = report.event_at_epoch_end(1, step) if step % 10 == 0 else report.event_if_due(1, step)
        if line is not None:
            times.append(clock[0])
            losses += len(line.losses)
    assert all(later - earlier > 0.999 for earlier, later in zip(times, times[4:], strict=False))
    assert losses + len(report.pending) == 1999


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_cuda_repeats_and_resumes(make_config: MakeConfig, make_data: MakeData, precision: str) -> None:
    config = make_config(model="vgg", width=4, epochs=2, augmentation="crop_flip")
    cpu = make_data(config)
    on_gpu: dict[str, Any] = {
        name: value.cuda() if isinstance(value, torch.Tensor) and name != "train_indices" else value
        for name, value in vars(cpu).items()
    }
    apply(Environment("cuda:0", precision, 1))
    first, again = (train(config, Data(**on_gpu), device="cuda:0", precision=precision) for _time in range(2))
    rest = train(config, Data(**on_gpu), epochs(first)[0].state, device="cuda:0", precision=precision)
    for other in (again, rest):
        assert_same_tensors(epochs(first)[-1].state, epochs(other)[-1].state)
