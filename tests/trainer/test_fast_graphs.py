"""Replayed steps are the steps: same numbers, resumable, and a run goes on where nothing can be recorded.

Each run is made on the CPU with a recorder that only remembers what to call, and on a GPU with the real one.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import engine, fast, loader, models, optimizers, schedule
from trainer.checkpoint import State
from trainer.config import RunConfig
from trainer.environment import Environment, apply
from trainer.events import Epoch
from trainer.failures import NonFiniteLoss
from trainer.fast import graphs
from trainer.learner import Learner
from trainer.loader import Data

pytestmark = [pytest.mark.arithmetic, pytest.mark.slow]

MakeConfig = Callable[..., RunConfig]
MakeData = Callable[..., Data]
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_CUDA = [pytest.mark.cuda, NEEDS_CUDA, pytest.mark.filterwarnings("default")]  # PyTorch names what may not repeat
NEVER = 1 << 30
FULL_BATCHES = 6  # and a short one: 104 images in batches of 16


class Remembered:
    """A graph of the CPU: calls again, and writes the result to the same place."""

    def __init__(self, call: Callable[[], graphs.Result], result: graphs.Result) -> None:
        self._call, self._result = call, result

    def replay(self) -> None:
        for place, value in zip(self._result, self._call(), strict=True):
            place.copy_(value)


class OnCPU:
    """Stands in for the recorder of a GPU."""

    def __init__(self, device: torch.device) -> None:
        pass

    def run(self, call: Callable[[], graphs.Result]) -> graphs.Result:
        return call()

    def record(self, call: Callable[[], graphs.Result]) -> tuple[graphs.Replay, graphs.Result]:
        result = torch.empty(()), torch.empty(16, dtype=torch.int64)
        return Remembered(call, result), result


class Place:
    """Where a test's runs are made, and how often a step was run or recorded there."""

    def __init__(self, name: str, make_data: MakeData, patch: pytest.MonkeyPatch) -> None:
        self.name, self.num_run, self.num_recorded = name, 0, 0
        self._make_data = make_data
        place, base = self, OnCPU if name == "cpu" else graphs.Recorder

        class Counting(base):  # type: ignore[misc, valid-type]
            def run(self, call: Callable[[], graphs.Result]) -> Any:
                place.num_run += 1
                return super().run(call)

            def record(self, call: Callable[[], graphs.Result]) -> Any:
                recorded = super().record(place.recorded(call))
                place.num_recorded += 1
                return recorded

        patch.setattr(graphs, "Recorder", Counting)

    def recorded(self, call: Callable[[], graphs.Result]) -> Callable[[], graphs.Result]:
        """What is recorded in place of a step."""
        return call

    def environment(self, precision: str = "float32", use: bool = True) -> Environment:
        return Environment(self.name, precision, 1, graphs=use)

    def data(self, config: RunConfig, shape: tuple[int, int, int] = (3, 16, 16)) -> Data:
        cpu = self._make_data(config, shape=shape)
        splits = [
            (cpu.train_images.numpy(), cpu.train_labels.numpy()),
            (cpu.test_images.numpy(), cpu.test_labels.numpy()),
        ]
        moments = ((0.2,) * shape[0], (0.3,) * shape[0])
        return loader.from_arrays(
            config, torch.device(self.name), splits[0], splits[1], class_names=cpu.class_names, moments=moments
        )


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=ON_CUDA)])
def place(request: pytest.FixtureRequest, make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    here = Place(request.param, make_data, monkeypatch)
    if here.name != "cpu":
        apply(here.environment())
    yield here
    if here.name != "cpu":
        torch.use_deterministic_algorithms(False)


def epochs(config: RunConfig, data: Data, environment: Environment, resume: State | None = None) -> list[Epoch]:
    """The epochs of a run, their states copied: training goes on with the same tensors."""
    events = engine.train(config, data, environment, resume)
    return [replace(event, state=copy.deepcopy(event.state)) for event in events if isinstance(event, Epoch)]


def assert_same(mine: list[Epoch], theirs: list[Epoch]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert (one.train_loss, one.train_accuracy) == (other.train_loss, other.train_accuracy)
        assert (one.test_loss, one.test_correct) == (other.test_loss, other.test_correct)
        assert one.state.tensors.keys() == other.state.tensors.keys()
        assert one.state.scalars == other.state.scalars
        for name, tensor in one.state.tensors.items():
            assert torch.equal(tensor, other.state.tensors[name]), name


RECIPES: dict[str, dict[str, Any]] = {
    "sgd, one cycle, smoothing": {"momentum": 0.9, "nesterov": True, "schedule": "one_cycle", "label_smoothing": 0.1},
    "plain sgd": {"momentum": 0.0, "weight_decay": 0.01},
    "adam": {"model": "cnn", "optimizer": "adam", "learning_rate": 0.001, "augmentation": "crop_flip"},
    "adamw, average": {"model": "lenet", "optimizer": "adamw", "learning_rate": 0.001, "weight_averaging": 0.9},
    "muon": {"model": "vgg", "width": 4, "optimizer": "muon", "momentum": 0.6, "nesterov": True, "weight_decay": 0.01},
    "dropout": {"model": "vgg16", "width": 1, "learning_rate": 0.001},
}


def narrow_vgg16(layers: models.Layers, shape: models.Shape, num_classes: int, width: int) -> None:
    """Its dropout without its 17 million weights."""
    features = models._add_convolutions(layers, shape, models._VGG16, width)
    models._add_linear(layers, [features, 64, 64, num_classes], dropout=0.5)


@pytest.fixture(params=[*RECIPES])
def recipe(request: pytest.FixtureRequest, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setitem(models._BUILDERS, "vgg16", narrow_vgg16)
    return make_config(epochs=3, **RECIPES[request.param])


def test_replays_equal_steps(place: Place, recipe: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    data = place.data(recipe)
    replayed = epochs(recipe, data, place.environment())
    assert (place.num_run, place.num_recorded) == (graphs.WARM_UP, 1)
    monkeypatch.setattr(graphs, "WARM_UP", NEVER)
    stepped = epochs(recipe, data, place.environment())
    assert (place.num_run, place.num_recorded) == (3 + 3 * FULL_BATCHES, 1)
    assert_same(replayed, stepped)


def test_resumed_equals_uninterrupted(place: Place, recipe: RunConfig) -> None:
    data = place.data(recipe)
    whole = epochs(recipe, data, place.environment())
    torch.manual_seed(99)
    assert_same(whole[1:], epochs(recipe, data, place.environment(), resume=whole[0].state))
    assert place.num_recorded == 2


def test_plain_steps_give_nearly_the_same(place: Place, recipe: RunConfig) -> None:
    """A rate in float32 is rounded. Either way resumes what the other began."""
    data = place.data(recipe)
    runs = {use: epochs(recipe, data, place.environment(use=use)) for use in (False, True)}
    assert place.num_recorded == 1
    assert runs[True][0].train_loss == pytest.approx(runs[False][0].train_loss, rel=0.01)
    assert runs[True][0].state.tensors.keys() == runs[False][0].state.tensors.keys()
    assert runs[True][0].state.scalars.keys() == runs[False][0].state.scalars.keys()
    for use, whole in runs.items():
        rest = epochs(recipe, data, place.environment(use=not use), resume=whole[0].state)
        assert rest[0].train_loss == pytest.approx(whole[1].train_loss, rel=0.02)


def test_each_size_is_recorded(place: Place, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(model="vgg", width=4, epochs=4, progressive_size=True, momentum=0.9)
    data = place.data(config, shape=(3, 32, 32))
    replayed = epochs(config, data, place.environment())
    sizes = {loader.progressive_size(config, data.image_shape, epoch) for epoch in range(1, 5)}
    assert place.num_recorded == len(sizes) == 3
    assert place.num_run == 3 * graphs.WARM_UP
    rest = epochs(config, data, place.environment(), resume=replayed[0].state)
    assert_same(replayed[1:], rest)
    monkeypatch.setattr(graphs, "WARM_UP", NEVER)
    assert_same(replayed, epochs(config, data, place.environment()))


def test_short_batches_only_are_not_recorded(place: Place, make_config: MakeConfig) -> None:
    config = make_config(epochs=8, batch_size=200)
    epochs(config, place.data(config), place.environment())
    assert (place.num_run, place.num_recorded) == (0, 0)


def test_the_rate_changes_between_replays(place: Place, make_config: MakeConfig) -> None:
    """The loss of the last step before and behind a rate of zero is the same, and else it is not."""
    config = make_config(momentum=0.0)
    data = place.data(config)
    environment = place.environment()
    learner = Learner.create(config, data, environment)
    step = engine.training_step(config, environment, learner)
    step = fast.speed_up_step(step, environment.ways, config.batch_size, data.device)
    images, labels = next(iter(loader.training_epoch(config, data, 1)))
    losses = []
    for rate in (0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1, 0.1):
        optimizers.set_rate(learner.optimizer, rate)
        losses.append(float(step(images, labels)[0]))
    assert place.num_recorded == 1
    assert losses[4] == losses[5] == losses[6] > losses[7]
    assert losses[3] > losses[4]


def test_nan_in_a_replay_is_named(place: Place, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    monkeypatch.setattr(schedule, "learning_rates", lambda config, total: lambda step: torch.inf if step == 5 else 0.01)
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step 6\."):
        epochs(config, place.data(config), place.environment())
    assert place.num_recorded == 1


# Rates in tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_rates_in_tensors_are_the_rates(make_config: MakeConfig, name: str) -> None:
    config = make_config(optimizer=name, learning_rate=0.02, weight_decay=0.1)
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    device = torch.device("cpu")
    made = [optimizers.build(config, net.parameters(), device, graphed=number == 1) for number, net in enumerate(nets)]
    assert isinstance(made[1].param_groups[0]["lr"], Tensor)
    for rate in (0.02, 0.01, 0.005):
        for pair in zip(*(net.parameters() for net in nets), strict=True):
            gradient = torch.randn(pair[0].shape)
            for parameter in pair:
                parameter.grad = gradient.clone()
        for optimizer in made:
            optimizers.set_rate(optimizer, rate)
            optimizer.step()
        assert [float(one.param_groups[0]["lr"]) for one in made] == pytest.approx([rate, rate])
    for mine, theirs in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


# On a GPU only -------------------------------------------------------------------------------------------------------


@pytest.mark.cuda
@NEEDS_CUDA
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("precision", "last"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_cuda_repeats_in_each_precision(
    make_config: MakeConfig, make_data: MakeData, monkeypatch: pytest.MonkeyPatch, precision: str, last: bool
) -> None:
    place = Place("cuda:0", make_data, monkeypatch)
    environment = replace(place.environment(precision), channels_last=last)
    apply(environment)
    config = make_config(model="vgg", width=8, epochs=2, optimizer="adam", learning_rate=0.001)
    data = place.data(config, shape=(3, 32, 32))
    first, again = (epochs(config, data, environment) for _time in range(2))
    assert_same(first, again)
    assert_same(first[1:], epochs(config, data, environment, resume=first[0].state))
    monkeypatch.setattr(graphs, "WARM_UP", NEVER)
    assert_same(first, epochs(config, data, environment))


@pytest.mark.cuda
@NEEDS_CUDA
@pytest.mark.filterwarnings("default")
def test_cuda_is_not_waited_for(make_config: MakeConfig, make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are run, replayed and short, of an epoch."""
    place = Place("cuda:0", make_data, monkeypatch)
    config = make_config(model="vgg", width=4, optimizer="muon", momentum=0.6, weight_averaging=0.9, epochs=2)
    events = engine.train(config, place.data(config), place.environment())
    for _event in range(1 + graphs.WARM_UP + 1):  # the beginning, and the steps up to the recording
        next(events)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _step in range(FULL_BATCHES - graphs.WARM_UP):  # the rest of the epoch, its short batch included
            next(events)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    events.close()
    assert place.num_recorded == 1


# Where nothing can be recorded: last, for a broken recording may disturb the next one of a process ----------------------


@pytest.mark.parametrize("recipe", ["plain sgd", "dropout"], indirect=True)
def test_goes_on_where_nothing_can_be_recorded(
    place: Place, recipe: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def recorded(call: Callable[[], graphs.Result]) -> Callable[[], graphs.Result]:
        def reads_back() -> graphs.Result:
            loss, answers = call()
            loss.item()
            return loss, answers

        return reads_back

    monkeypatch.setattr(place, "recorded", recorded)
    if place.name == "cpu":

        def refuse(recorder: OnCPU, call: Callable[[], graphs.Result]) -> None:
            raise graphs.NotRecorded("operation not permitted when stream is capturing")

        monkeypatch.setattr(OnCPU, "record", refuse)
    data = place.data(recipe)
    with caplog.at_level(logging.WARNING, "trainer.fast.graphs"):
        run = epochs(recipe, data, place.environment())
    assert place.num_recorded == 0
    assert ["continues without a CUDA graph" in record.message for record in caplog.records] == [True]
    monkeypatch.setattr(graphs, "WARM_UP", NEVER)
    assert_same(run, epochs(recipe, data, place.environment()))


def test_real_failures_surface(make_config: MakeConfig, make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("cpu", make_data, monkeypatch)

    def refuse(recorder: OnCPU, call: Callable[[], graphs.Result]) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(OnCPU, "record", refuse)
    config = make_config()
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        epochs(config, place.data(config), place.environment())
