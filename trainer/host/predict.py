"""Predict an image of the user with a trained net, in the same steps as a test image, on the CPU."""

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
    """Ask the checkpoint of ``epoch`` about an image file; another size is resized and cropped in the middle.

    The answer has ``probabilities`` (one a class), ``predicted`` (the index of the highest) and ``class_names``.
    Raises ``ValueError`` where the bytes are no image or the checkpoint is damaged, ``FileNotFoundError`` where
    checkpoint or data set are not there.
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
    answers = evaluate(net, torch.tensor(pixels)[None], torch.zeros(1, dtype=torch.int64), data, config, environment)
    probabilities = _result(answers).log_probabilities[0].exp().tolist()
    return {
        "probabilities": probabilities,
        "predicted": max(range(len(probabilities)), key=probabilities.__getitem__),
        "class_names": data.class_names,
    }


def _environment(folder: RunFolder) -> Environment:
    """The run's environment moved to the CPU; a GPU's number format is not copied there."""
    stored = folder.read_environment()
    if stored is None:
        raise FileNotFoundError(_("The run has not started, so there is no net for a prediction."))
    environment = Environment.from_json(stored)
    return environment if environment.device == "cpu" else replace(environment, device="cpu", precision="float32")


def _result(answers: Generator[None, None, Evaluation]) -> Evaluation:
    while True:
        try:
            next(answers)
        except StopIteration as end:
            evaluation: Evaluation = end.value
            return evaluation
