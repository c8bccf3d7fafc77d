"""Which ways are chosen for a net, and that the net with faster layers is the same net."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainer import fast, models
from trainer.config import MODELS, RunConfig
from trainer.environment import Environment
from trainer.fast import Ways, sequence
from trainer.fast.conv3x3 import Conv3x3
from trainer.fast.conv_pool import ConvPoolReLU

pytestmark = [pytest.mark.arithmetic, pytest.mark.slow]

MakeConfig = Callable[..., RunConfig]
DEVICES = ["cpu", "cuda:0", "cuda:3", "mps"]
PRECISIONS = ["float32", "bfloat16", "float16"]
PLAIN, GRAPHS = Ways(), Ways(graphs=True)

# Runs of earlier versions continue with these ways, so the table holds for ever.
WAYS: dict[tuple[str, str], tuple[Ways, Ways, Ways]] = {
    ("fc", "cpu"): (PLAIN, PLAIN, PLAIN),
    ("cnn", "cpu"): (Ways(convolution="fused"), Ways(channels_last=True), Ways(channels_last=True)),
    ("lenet", "cpu"): (Ways(convolution="fused"), Ways(channels_last=True), Ways(channels_last=True)),
    ("vgg", "cpu"): (Ways(True, "winograd", True), Ways(True, "columns", True), Ways(True, "columns", True)),
    ("vgg16", "cpu"): (Ways(True, "winograd", True), Ways(True, "columns", True), Ways(True, "columns", True)),
    ("fc", "cuda"): (GRAPHS, GRAPHS, PLAIN),
    ("cnn", "cuda"): (GRAPHS, GRAPHS, PLAIN),
    ("lenet", "cuda"): (GRAPHS, GRAPHS, PLAIN),
    ("vgg", "cuda"): (GRAPHS, Ways(channels_last=True, graphs=True), PLAIN),
    ("vgg16", "cuda"): (GRAPHS, Ways(channels_last=True, graphs=True), PLAIN),
}
WIDE = {model: (Ways(channels_last=True),) * 3 for model in ("cnn", "lenet")}  # of more than 20 channels, on a CPU


def net(config: RunConfig, num_channels: int = 3) -> nn.Sequential:
    with torch.device("meta"):
        return models.build(config, (num_channels, 32, 32), 10)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("width", [None, 1, 2, 6, 8, 16, 20, 21, 32, 64, 200])
def test_the_ways_of_every_net(make_config: MakeConfig, model: str, width: int | None) -> None:
    config = make_config(model=model, width=width)
    for device, num_channels in itertools.product(DEVICES, (1, 3)):
        expected = WAYS.get((model, device.partition(":")[0]), (PLAIN,) * 3)
        if device == "cpu" and model in WIDE and (width or 6) > 20:
            expected = WIDE[model]
        found = tuple(fast.ways_of(net(config, num_channels), device, precision) for precision in PRECISIONS)
        assert found == expected, device


def test_the_environment_records_the_ways() -> None:
    ways = Ways(True, "columns", True, True)
    environment = Environment("cuda:0", "float32", 1, **vars(ways))
    assert Environment.from_json(environment.to_json()).ways == ways


def test_an_environment_of_an_earlier_version_has_the_plain_ways() -> None:
    old = {"device": "cpu", "precision": "float32", "num_threads": 1, "deterministic": True}
    assert Environment.from_json(old).ways == PLAIN


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("ways", [*dict.fromkeys([PLAIN, *itertools.chain(*WAYS.values())])], ids=str)
def test_a_faster_net_keeps_the_names_and_the_numbers_of_its_parameters(
    make_config: MakeConfig, model: str, ways: Ways
) -> None:
    built = models.build(make_config(model=model, width=1), (3, 32, 32), 10)
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    after = fast.speed_up(built, ways).state_dict()
    assert [*after] == [*before]
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.mark.parametrize("convolution", ["winograd", "columns"])
def test_layers_are_replaced(make_config: MakeConfig, convolution: str) -> None:
    faster = fast.speed_up(net(make_config(model="vgg")), Ways(convolution=convolution, fused_norm=True))
    kinds = [type(layer).__name__ for layer in faster]
    assert kinds == ["Conv3x3", "NormPoolReLU"] * 8 + ["AdaptiveAvgPool2d", "Flatten", "Linear"]


@pytest.mark.parametrize("model", ["cnn", "lenet"])
def test_convolution_pooling_and_relu_become_one(make_config: MakeConfig, model: str) -> None:
    faster = fast.speed_up(net(make_config(model=model)), Ways(convolution="fused"))
    assert [type(layer) for layer in faster][:3] == [ConvPoolReLU, ConvPoolReLU, nn.Flatten]


def test_what_does_not_fit_stays() -> None:
    """A net that is not one of ours: strides, other poolings, BatchNorm without ReLU."""
    odd = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 5, stride=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 5),
        nn.MaxPool2d(3, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(2),
        nn.ReLU(),
        nn.BatchNorm2d(4),
    )
    for convolution, replaced in (("winograd", 2), ("columns", 2), ("fused", 0)):
        faster = fast.speed_up(copy.deepcopy(odd), Ways(convolution=convolution, fused_norm=True))
        assert sum(isinstance(layer, Conv3x3) for layer in faster) == replaced
        assert len(faster) == len(odd)


@pytest.mark.parametrize("model", ["cnn", "lenet", "vgg"])
def test_pooling_before_relu_changes_no_bit(make_config: MakeConfig, model: str) -> None:
    built = models.build(make_config(model=model, width=6), (3, 32, 32), 10)
    reordered = sequence.pool_before_relu(copy.deepcopy(built))
    assert [name for name, _layer in built.named_children()] != [name for name, _layer in reordered.named_children()]
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[:, :, :12] = 0  # equal pixels, so that windows have ties, as in the black border of a digit
    outputs = []
    for each in (built, reordered):
        output = each(images)
        output.square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    for (name, parameter), other in zip(built.named_parameters(), reordered.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.equal(parameter.grad, other.grad), name
