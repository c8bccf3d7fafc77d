"""The rules between a configuration and the images of its data set. Imports neither torch nor numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainer.config import MODELS, ConfigError, FieldProblem, RunConfig
from trainer.i18n import _


def first_side(config: RunConfig, image_size: tuple[int, int]) -> int:
    """The shorter side of the smallest images that ``progressive_size`` trains on: half, where the net takes that."""
    smallest = MODELS[config.model].smallest_image
    least = smallest if any(side % smallest for side in image_size) else smallest // 2
    return max(least, min(image_size) // 2)


def check_data(config: RunConfig, *, image_size: tuple[int, int], num_channels: int, num_train: int) -> None:
    """Check a configuration against its data set; ``image_size`` is (height, width) in pixels.

    Raises ``ConfigError`` with one sentence per field.
    """
    broken = _broken_rules(config, image_size, num_channels, num_train)
    problems = [FieldProblem(field=field, message=message) for field, message in broken]
    if problems:
        raise ConfigError(problems)


def _broken_rules(
    config: RunConfig, image_size: tuple[int, int], num_channels: int, num_train: int
) -> Iterator[tuple[str, str]]:
    """The field and the sentence of each rule that the configuration breaks."""
    smallest, (height, width) = MODELS[config.model].smallest_image, image_size
    if min(image_size) * 2 < smallest:
        message = _(
            "{model} needs images of at least {least} pixels per side; {dataset} has {height} x {width}. "
            "Choose fc, or import the images larger."
        )
        least = math.ceil(smallest / 2)
        yield (
            "model",
            message.format(model=config.model, least=least, dataset=config.dataset, height=height, width=width),
        )
    if config.normalization == "cifar10" and num_channels != 3:
        message = _("The CIFAR-10 constants are for RGB images; {dataset} is grey. Choose dataset.")
        yield "normalization", message.format(dataset=config.dataset)
    if config.progressive_size and first_side(config, image_size) >= min(image_size):
        message = _(
            "Progressive size needs images of {least} x {least} pixels or larger; {dataset} has {height} x {width}."
        )
        yield "progressive_size", message.format(least=smallest, dataset=config.dataset, height=height, width=width)
    if round(num_train * config.train_fraction * (1 - config.validation_fraction)) < 1:
        yield "train_fraction", _("No training image would be left. Choose a larger fraction.")
