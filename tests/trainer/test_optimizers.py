"""Optimizers, and the running mean of weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainer import optimizers
from trainer.config import RunConfig

pytestmark = pytest.mark.arithmetic

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_optimizer_takes_its_fields(make_config: MakeConfig, name: str) -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    optimizer = optimizers.build(
        make_config(optimizer=name, learning_rate=0.2, weight_decay=0.1), parameters, torch.device("cpu")
    )
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("shape", [(4, 30), (30, 4), (12, 12), (1, 5)])
def test_orthogonal_is_the_iteration_of_its_source(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    found = optimizers.orthogonal(matrix)
    expected = (matrix / matrix.norm()).double()
    for _iteration in range(5):
        gram = expected @ expected.T
        expected = 3.4445 * expected + (-4.7750 * gram + 2.0315 * gram @ gram) @ expected
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-4)
    if shape != (12, 12):  # whose smallest singular value is too near to zero for five iterations
        values = torch.linalg.svdvals(found)
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.25


def test_orthogonal_of_nothing_is_nothing() -> None:
    assert optimizers.orthogonal(torch.zeros(3, 5)).tolist() == torch.zeros(3, 5).tolist()


def _muon_and_sgd(make_config: MakeConfig, nesterov: bool) -> tuple[nn.Sequential, nn.Sequential]:
    """The same net after three steps with either optimizer on the same gradients."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    made = [
        optimizers.build(
            make_config(optimizer=name, learning_rate=0.1, momentum=0.6, nesterov=nesterov),
            net.parameters(),
            torch.device("cpu"),
        )
        for name, net in zip(("muon", "sgd"), nets, strict=True)
    ]
    for _step in range(3):
        for pair in zip(*(net.parameters() for net in nets), strict=True):
            gradient = torch.randn(pair[0].shape)
            for parameter in pair:
                parameter.grad = gradient.clone()
        for optimizer in made:
            optimizer.step()
    return nets[0], nets[1]


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_sgd_but_for_the_filters(make_config: MakeConfig, nesterov: bool) -> None:
    by_muon, by_sgd = _muon_and_sgd(make_config, nesterov)
    others = dict(by_sgd.named_parameters())
    for name, parameter in by_muon.named_parameters():
        same = torch.allclose(parameter, others[name], atol=1e-6)
        assert same == (name != "0.weight"), name


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_muon_steps_along_the_orthogonal_momentum(order: torch.memory_format) -> None:
    torch.manual_seed(0)
    filters = nn.Parameter(torch.randn(8, 2, 3, 3).contiguous(memory_format=order))
    last = nn.Parameter(torch.zeros(2, 8))
    optimizer = optimizers.Muon([filters, last], lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.2)
    expected, mean = filters.detach().clone(), torch.zeros(8, 2, 3, 3)
    for _step in range(2):
        filters.grad = torch.randn(8, 2, 3, 3)
        optimizer.step()
        mean = 0.5 * mean + filters.grad
        step = optimizers.orthogonal((filters.grad + 0.5 * mean).flatten(1)).view(8, 2, 3, 3)
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * step
    torch.testing.assert_close(filters.detach(), expected, rtol=0, atol=1e-5)
    assert not last.any()


def test_muon_leaves_parameters_without_a_gradient() -> None:
    filters, last, norm = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(2))
    optimizer = optimizers.Muon([filters, norm, last], lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.5)
    norm.grad = torch.ones(2)
    optimizer.step()
    assert filters.detach().eq(1).all()
    assert last.detach().eq(1).all()
    assert norm.tolist() == pytest.approx([0.85] * 2)  # which decays not at all: 1 - 0.1 (1 + 0.5)


def test_muon_of_a_single_layer_is_sgd() -> None:
    only = nn.Parameter(torch.ones(2, 3))
    optimizer = optimizers.Muon([only], lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.5)
    only.grad = torch.full((2, 3), 2.0)
    optimizer.step()
    torch.testing.assert_close(only.detach(), torch.full((2, 3), 0.8))


def test_muon_takes_larger_steps_for_tall_matrices() -> None:
    tall, last = nn.Parameter(torch.zeros(36, 4)), nn.Parameter(torch.zeros(2, 36))
    optimizer = optimizers.Muon([tall, last], lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0)
    torch.manual_seed(0)
    tall.grad = torch.randn(36, 4)
    optimizer.step()
    torch.testing.assert_close(tall.detach(), -0.1 * 3 * optimizers.orthogonal(tall.grad))


def test_average_follows_its_formula() -> None:
    source, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    average = optimizers.WeightAverage(0.5, source, target)
    for step, value in enumerate((3.0, 5.0), start=1):
        nn.init.constant_(source.weight, value)
        assert source.num_batches_tracked is not None
        source.num_batches_tracked.fill_(step)
        average.update(step)
    mean = 1.0
    for decay, value in ((2 / 11, 3.0), (3 / 12, 5.0)):
        mean += (1 - decay) * (value - mean)
    assert target.weight.tolist() == pytest.approx([mean, mean])
    assert int(target.num_batches_tracked or 0) == 2
