"""Evaluation against the same thing written plainly, from memory and from a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import pytest
import torch
from torch import nn

from trainer import evaluation, loader, models, streaming
from trainer.config import RunConfig
from trainer.environment import Environment
from trainer.evaluation import Evaluation, evaluate, evaluation_batch
from trainer.loader import Data

pytestmark = pytest.mark.arithmetic

MakeConfig = Callable[..., RunConfig]
MakeData = Callable[..., Data]


def result(batches: Generator[None, None, Evaluation]) -> tuple[int, Evaluation]:
    """How often it yielded, and what it returned."""
    count = 0
    while True:
        try:
            next(batches)
        except StopIteration as end:
            return count, end.value
        count += 1


def net_for(config: RunConfig, data: Data) -> nn.Module:
    torch.manual_seed(0)
    return models.build(config, data.image_shape, data.num_classes)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_equals_the_plain_sum(
    make_config: MakeConfig,
    make_data: MakeData,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    flip: bool,
    streamed: bool,
) -> None:
    config = make_config(flip_averaging=flip, validation_fraction=0.25)
    monkeypatch.setattr(streaming, "available_bytes", lambda device: 0 if streamed else 1 << 40)
    monkeypatch.setattr(evaluation, "_CPU_BATCH", 7)
    data = make_data(config)
    assert data.streamed is streamed
    net = net_for(config, data)
    for images, labels, pixels in (
        (data.test_images, data.test_labels, data.test_images),
        (data.validation_images, data.validation_labels, data.train_images[data.validation_indices]),
    ):
        count, answer = result(evaluate(net, images, labels, data, config, environment))
        assert count == math.ceil(len(images) / 7)
        with torch.no_grad():
            probabilities = net(loader.net_input(pixels, data)).softmax(1)
            if flip:
                probabilities = (probabilities + net(loader.net_input(pixels.flip(3), data)).softmax(1)) / 2
        torch.testing.assert_close(answer.log_probabilities, probabilities.log())
        chosen = probabilities[torch.arange(len(labels)), labels]
        assert answer.loss == pytest.approx(float(-chosen.log().mean()), rel=1e-5)
        assert answer.correct == int((probabilities.argmax(1) == labels).sum())
        assert (answer.total, len(answer.predicted)) == (len(images), len(images))


def test_the_file_gives_the_same_bits(
    make_config: MakeConfig, make_data: MakeData, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(model="cnn", validation_fraction=0.25)
    monkeypatch.setattr(evaluation, "_CPU_BATCH", 7)
    inside = make_data(config)
    monkeypatch.setattr(streaming, "available_bytes", lambda device: 0)
    outside = make_data(config)
    net = net_for(config, inside)
    for part in ("test", "validation"):
        one, other = (
            result(
                evaluate(
                    net, getattr(data, f"{part}_images"), getattr(data, f"{part}_labels"), data, config, environment
                )
            )
            for data in (inside, outside)
        )
        assert torch.equal(one[1].log_probabilities, other[1].log_probabilities)


def test_the_caller_is_not_left_in_inference_mode(
    make_config: MakeConfig, make_data: MakeData, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    monkeypatch.setattr(evaluation, "_CPU_BATCH", 16)
    data = make_data(config)
    net, modes = net_for(config, data), []
    net.register_forward_hook(lambda *_args: modes.append((torch.is_inference_mode_enabled(), net.training)))
    batches = evaluate(net, data.test_images, data.test_labels, data, config, environment)
    next(batches)
    assert not torch.is_inference_mode_enabled()
    _count, answer = result(batches)
    assert modes == [(True, False)] * 3
    assert not answer.log_probabilities.is_inference()
    assert net.training


@pytest.mark.parametrize(
    ("fields", "shape", "device", "batch"),
    [
        ({"model": "fc"}, (1, 28, 28), "cpu", 1000),
        ({"model": "vgg"}, (3, 32, 32), "cpu", 128),
        ({"model": "vgg"}, (3, 32, 32), "cuda", 1024),
        ({"model": "fc"}, (1, 28, 28), "cuda", 4000),
        ({"model": "vgg", "width": 512}, (3, 512, 512), "cpu", 1),
    ],
)
def test_batches_are_bounded_by_memory(
    make_config: MakeConfig, fields: dict[str, object], shape: tuple[int, int, int], device: str, batch: int
) -> None:
    with torch.device("meta"):
        net = models.build(make_config(**fields), shape, 10)
    assert evaluation_batch(net, shape, torch.device(device)) == batch
