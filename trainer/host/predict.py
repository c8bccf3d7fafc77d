"""Predict the class of an uploaded image with a trained net, on the CPU, in the same way as for a test image."""

from __future__ import annotations

import io
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch

from trainer import checkpoint, loader, models
from trainer.datasets.decode import decode
from trainer.environment import Environment
from trainer.evaluation import Evaluation, evaluate
from trainer.home import home
from trainer.i18n import _
from trainer.run_folder import RunFolder


def predict(folder: RunFolder, epoch: int, image: bytes) -> dict[str, Any]:
    """Predict an image file with the checkpoint of ``epoch``. An image of another size is resized and center-cropped.

    Returns ``probabilities`` (one per class, 0 to 1), ``predicted`` (the index of the highest) and ``class_names``.
    Raises ``ValueError`` if the bytes are not an image or the checkpoint is damaged, and ``FileNotFoundError`` if the
    checkpoint or the data set is missing.
    """
    environment = _environment(folder)
    config = folder.read_config()
    if not folder.checkpoint_path(epoch).is_file():
        raise FileNotFoundError(
            _("The checkpoint of epoch {epoch} was not kept. Choose the last or the best.").format(epoch=epoch)
        )
    plain = config.model_copy(update={"validation_fraction": 0.0, "train_fraction": 1.0, "label_noise": 0.0})
    data = loader.load(home(), plain, torch.device("cpu"))
    channels, height, width = data.image_shape
    try:
        pixels = decode(io.BytesIO(image), grey=channels == 1, height=height, width=width)
    except ValueError as problem:
        raise ValueError(_("This file is not a readable image. Choose a PNG or JPEG file.")) from problem
    net = models.build(config, data.image_shape, data.num_classes)
    net.load_state_dict(checkpoint.load_model(folder, epoch))
    torch.set_num_threads(1)
    batches = evaluate(net, torch.tensor(pixels)[None], torch.zeros(1, dtype=torch.int64), data, config, environment)
    probabilities = _result(batches).log_probabilities[0].exp().tolist()
    return {
        "probabilities": probabilities,
        "predicted": max(range(len(probabilities)), key=probabilities.__getitem__),
        "class_names": data.class_names,
    }


def _environment(folder: RunFolder) -> Environment:
    """The run's environment on the CPU. A run that was trained on a GPU predicts in float32."""
    stored = folder.read_environment()
    if stored is None:
        raise FileNotFoundError(_("The run has not started, so there is no net for a prediction."))
    environment = Environment.from_json(stored)
    return environment if environment.device == "cpu" else replace(environment, device="cpu", precision="float32")


def _result(batches: Generator[None, None, Evaluation]) -> Evaluation:
    """Run a generator to its end and return its value."""
    while True:
        try:
            next(batches)
        except StopIteration as end:
            evaluation: Evaluation = end.value
            return evaluation
