"""Which images are used, in what order, and what the net sees of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from trainer import augment, loader
from trainer.config import RunConfig
from trainer.datasets.catalogue import pixel_permutation
from trainer.loader import Data

pytestmark = pytest.mark.arithmetic

MakeConfig = Callable[..., RunConfig]
MakeData = Callable[..., Data]


def test_an_epoch_is_one_permutation_with_a_short_last_batch(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config()
    data = make_data(config)
    epoch = loader.training_epoch(config, data, 1)
    sizes = [len(labels) for _images, labels in epoch]
    assert sizes == [16] * 6 + [8]
    assert len(sizes) == loader.steps_per_epoch(config, data)
    assert epoch.order.sort().values.tolist() == [*range(104)]
    assert torch.equal(torch.cat([labels for _images, labels in epoch]), data.train_labels[epoch.order])


@pytest.mark.parametrize("prepared", [0, 40_000, 1 << 30])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"augmentation": "crop_flip", "permute_pixels": True},
        {"augmentation": "crop_flip_cutout", "normalization": "half"},
        {"progressive_size": True},
    ],
)
def test_batches_prepared_together_are_those_prepared_alone(
    make_config: MakeConfig, make_data: MakeData, monkeypatch: pytest.MonkeyPatch, prepared: int, fields: dict[str, Any]
) -> None:
    config = make_config(model="vgg", epochs=2, **fields)
    data = make_data(config, shape=(3, 48, 48) if "progressive_size" in fields else (3, 16, 16))
    monkeypatch.setattr(loader, "_PREPARED", prepared)
    epoch = loader.training_epoch(config, data, 1)
    places = [(begin, min(begin + 16, 104)) for begin in range(0, 104, 16)]
    for (begin, end), (images, labels) in zip(places, epoch, strict=True):
        alone = data.train_images[epoch.order[begin:end]]
        if epoch.drawn is not None:
            alone = augment.apply(alone, epoch.drawn.part(begin, end), data.mean_pixel)
        assert torch.equal(images, loader.net_input(alone, data, size=epoch.size))
        assert torch.equal(labels, data.train_labels[epoch.order[begin:end]])


def test_batches_prepared_together_fit_the_caches(make_config: MakeConfig, make_data: MakeData) -> None:
    data = make_data(make_config(), shape=(3, 16, 16))
    assert loader.batches_at_once(64, data) == 2 * 2**20 // (64 * 3 * 16 * 16 * 4)
    assert loader.batches_at_once(10_000, data) == 1


def test_an_epoch_draws_nothing_from_the_global_stream(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(augmentation="crop_flip")
    data = make_data(config)
    before = torch.get_rng_state()
    for streamed in (False, True):
        for _images, _labels in loader.training_epoch(config, replace(data, streamed=streamed), 1):
            pass
        assert torch.equal(torch.get_rng_state(), before)


def test_order_depends_on_seed_and_epoch(make_config: MakeConfig, make_data: MakeData) -> None:
    data = make_data(make_config())
    orders = [
        loader.training_epoch(make_config(seed=seed), data, epoch).order.tolist()
        for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


@pytest.mark.parametrize("normalization", ["dataset", "half", "cifar10", "none"])
def test_normalisation_is_torchvisions(make_config: MakeConfig, make_data: MakeData, normalization: str) -> None:
    data = make_data(make_config(normalization=normalization), shape=(3, 16, 16))
    mean, std = {
        "dataset": ([0.2] * 3, [0.3] * 3),
        "half": ([0.5] * 3, [0.5] * 3),
        "none": ([0.0] * 3, [1.0] * 3),
        "cifar10": ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    }[normalization]
    expected = v2.Normalize(mean, std)(data.test_images.float() / 255)
    torch.testing.assert_close(loader.net_input(data.test_images, data), expected, rtol=1e-5, atol=1e-5)


def test_permuted_pixels_are_the_same_for_every_channel(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(permute_pixels=True, permutation_seed=5)
    data, plain = make_data(config, shape=(3, 16, 16)), make_data(make_config(), shape=(3, 16, 16))
    permutation = pixel_permutation(16, 16, 5)
    expected = loader.net_input(data.test_images, plain).numpy().reshape(40, 3, 256)[:, :, permutation]
    assert (loader.net_input(data.test_images, data).numpy().reshape(40, 3, 256) == expected).all()


def test_validation_and_train_part_are_stratified_and_disjoint(make_config: MakeConfig) -> None:
    labels = torch.arange(1000) % 10
    chosen, held_out = loader.choose_images(make_config(validation_fraction=0.1, train_fraction=0.5), labels)
    assert (len(chosen), len(held_out)) == (450, 100)
    assert not set(chosen.tolist()) & set(held_out.tolist())
    assert labels[held_out].bincount().tolist() == [10] * 10
    assert labels[chosen].bincount().tolist() == [45] * 10
    _all, same = loader.choose_images(make_config(validation_fraction=0.1), labels)
    assert torch.equal(held_out, same)


def test_label_noise_leaves_other_rows_alone(make_config: MakeConfig) -> None:
    labels = torch.zeros(1000, dtype=torch.int64)
    chosen = torch.arange(500)
    noisy = loader.add_label_noise(make_config(label_noise=0.4), labels, chosen, 10)
    assert not noisy[500:].any()
    assert 150 < int((noisy != 0).sum()) <= 200  # 200 replaced, a tenth of them by the true class
    assert not labels.any()


def test_progressive_size_grows_to_full_size_in_the_first_half(make_config: MakeConfig) -> None:
    config = make_config(model="vgg", epochs=9, progressive_size=True)
    sizes = [loader.progressive_size(config, (3, 64, 96), epoch) for epoch in range(1, 10)]
    assert sizes == [(32, 48), (40, 60), (48, 72), (56, 84), None, None, None, None, None]


def test_progressive_size_halves_images_of_32_pixels(make_config: MakeConfig) -> None:
    config = make_config(model="vgg", epochs=8, progressive_size=True)
    sides = [loader.progressive_size(config, (3, 32, 32), epoch) for epoch in range(1, 6)]
    assert sides == [(16, 16), (20, 20), (24, 24), (28, 28), None]


def test_progressive_size_downsizes_the_batch(make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config(model="vgg", epochs=2, progressive_size=True)
    data = make_data(config, shape=(1, 48, 48))
    shapes = {tuple(images.shape[2:]) for images, _labels in loader.training_epoch(config, data, 1)}
    assert shapes == {(32, 32)}
