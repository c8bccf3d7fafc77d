"""BatchNorm, pooling and ReLU as one layer against PyTorch's three."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
from torch import Tensor, nn

from trainer import models
from trainer.config import parse_config
from trainer.fast import norm_pool, sequence
from trainer.fast.norm_pool import NormPoolReLU

pytestmark = pytest.mark.arithmetic

SIZES = [(8, 8), (2, 2), (1, 1), (5, 7), (6, 3), (1, 4)]


def _layers(channels: int, pooling: str | None) -> tuple[nn.Sequential, NormPoolReLU]:
    """PyTorch's layers and the one in their place, with the same weights in copies of their own."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight)  # negative ones too: where they are, the smallest pixel counts
    nn.init.normal_(norm.bias)
    pool = nn.MaxPool2d(2, ceil_mode=pooling == "up") if pooling else nn.Identity()
    return nn.Sequential(copy.deepcopy(norm), pool, nn.ReLU()), NormPoolReLU(norm, pooling)


def _trained(layer: nn.Module, norm: nn.BatchNorm2d, images: Tensor) -> list[Tensor]:
    """Output, gradients by images, weight and bias of a fixed sum of it, and the running statistics, as float32."""
    images = images.detach().requires_grad_()
    output = layer(images)
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    gradients = torch.autograd.grad(output, [images, norm.weight, norm.bias], factors)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [one.detach().float() for one in (output, *gradients, norm.running_mean, norm.running_var)]


@pytest.mark.parametrize(
    ("pooling", "size"),
    [(pooling, size) for pooling in (None, "up", "down") for size in SIZES if pooling != "down" or min(size) > 1],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_training_is_that_of_three_layers(size: tuple[int, int], pooling: str | None, threads: int) -> None:
    torch.set_num_threads(threads)
    three, one = _layers(5, pooling)
    images = 3 * torch.randn(9, 5, *size) + 1
    for found, expected in zip(_trained(one, one, images), _trained(three, three[0], images), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert one.num_batches_tracked == 1


@pytest.mark.parametrize("size", SIZES[:4])
@pytest.mark.parametrize("pooling", [None, "up"])
def test_in_bfloat16_it_rounds_once(size: tuple[int, int], pooling: str | None) -> None:
    three, one = _layers(5, pooling)
    images = torch.randn(40, 5, *size).bfloat16()
    found, expected = _trained(one, one, images), _trained(three, three[0], images.float())  # type: ignore[arg-type]
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, exact, rtol=2**-8, atol=2**-8 * float(exact.abs().max()))
    assert torch.equal(found[0], found[0].bfloat16().float())


def test_many_pixels_are_shared_by_threads_without_a_trace() -> None:
    images, found = torch.randn(33, 16, 18, 18), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        _three, one = _layers(16, "up")
        found.append(_trained(one, one, images))
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


@pytest.mark.parametrize("pooling", [None, "up"])
def test_evaluation_takes_the_running_statistics(pooling: str | None) -> None:
    three, one = _layers(5, pooling)
    for layer in (three, one):
        layer(2 * torch.randn(9, 5, 6, 6, generator=torch.Generator().manual_seed(2)) + 1)
        layer.eval()
    images = torch.randn(3, 5, 7, 7)
    torch.testing.assert_close(one(images), three(images), rtol=1e-5, atol=1e-5)
    assert one.num_batches_tracked == 1


def test_of_equal_pixels_the_first_has_the_gradient() -> None:
    three, one = _layers(4, "up")
    images = torch.randint(0, 2, (6, 4, 4, 4)).float()
    for found, expected in zip(_trained(one, one, images), _trained(three, three[0], images), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pixel_that_is_no_number_is_not_hidden(value: float, dtype: torch.dtype) -> None:
    _three, one = _layers(3, "up")
    images = torch.randn(4, 3, 4, 4, dtype=dtype)
    images[1, 1, 2, 3] = value
    assert not one(images)[:, 1].isfinite().any()


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_nan_is_the_largest_of_its_window_in_evaluation_too(place: tuple[int, int]) -> None:
    _three, one = _layers(3, "up")
    images = torch.randn(1, 3, 2, 2)
    images[0, 1, place[0], place[1]] = float("nan")
    assert one.eval()(images).isnan().flatten().tolist() == [False, True, False]


@pytest.mark.parametrize("pooling", [None, "up"])
def test_a_mean_much_larger_than_the_deviation_costs_no_digits(pooling: str | None) -> None:
    three, one = _layers(4, pooling)
    images = 100 + 0.01 * torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = three.double()(images.double()).detach()
    torch.testing.assert_close(one(images).double(), exact, rtol=0, atol=2e-3 * float(exact.abs().max()))


def test_one_value_a_channel_has_no_deviation() -> None:
    _three, one = _layers(4, "up")
    torch.testing.assert_close(one(torch.randn(1, 4, 1, 1)).flatten(), one.bias.relu(), rtol=1e-4, atol=1e-4)
    assert one.num_batches_tracked == 0
    assert torch.equal(one.running_var, torch.ones(4))  # type: ignore[arg-type]


def test_it_works_behind_a_fork() -> None:
    torch.set_num_threads(2)
    _three, one = _layers(16, "up")
    images = torch.randn(33, 16, 18, 18)
    with torch.inference_mode():
        one.eval()(images)
    child = os.fork()
    if not child:
        signal.alarm(20)  # where it waits for a thread that stayed in the parent
        norm_pool._pool(2).submit(int).result()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("model", ["vgg", "vgg16"])
@pytest.mark.parametrize("side", [32, 50])
def test_a_fused_net_keeps_names_and_parameters_and_answers_alike(model: str, side: int) -> None:
    config, _ = parse_config({"dataset": "cifar10", "model": model, "width": 4})
    built = sequence.pool_before_relu(models.build(config, (3, side, side), 10))
    net = sequence.replace(copy.deepcopy(built), norm_pool.faster)
    assert list(net.state_dict()) == list(built.state_dict())
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in net)
    images = torch.randn(6, 3, side, side)
    for one in (net, built):
        torch.manual_seed(0)  # of dropout
        one(images).square().sum().backward()
    for (name, found), expected in zip(net.named_parameters(), built.parameters(), strict=True):
        if name.startswith("conv") and name.endswith(".bias") and "norm" not in name:
            continue  # BatchNorm takes it away again, so that its gradient is rounding
        assert found.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(
            found.grad, expected.grad, rtol=1e-3, atol=1e-4 * float(expected.grad.abs().max()) + 1e-7, msg=name
        )
    torch.testing.assert_close(net.eval()(images), built.eval()(images), rtol=1e-3, atol=1e-4)
