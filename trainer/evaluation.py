"""What a net answers for every image of a split: loss, how many are right, and the answers to keep."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import RunConfig, resolved_width
from trainer.environment import Environment, release_freed_memory
from trainer.loader import Data, Rows, in_order, net_input

# Most images in a batch, and most floats of its widest layer. On the CPU 2,000 images took 37 % to 56 % longer each than
# 1,000 (cnn, lenet). vgg answers 1.1 to 1.3 times as many images a second in batches of 128 as of 64; 256 are no faster. On
# a GPU, which was not measured, larger batches only save calls, and memory is the bound.
_CPU_BATCH, _CPU_ACTIVATIONS = 1000, 1 << 23  # 32 MiB
_GPU_BATCH, _GPU_ACTIVATIONS = 4000, 1 << 26  # 256 MiB
MOST_CLASSES_IN_FULL = 64
_NUM_BEST = 5
_HALF = torch.finfo(torch.float16)


@dataclass(frozen=True)
class Evaluation:
    """The result over one split; ``loss`` is the plain mean negative log-likelihood in nats."""

    loss: float
    correct: int
    total: int
    predicted: Tensor  # int64 [N]
    log_probabilities: Tensor  # float32 [N, K], on the CPU

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


def evaluate(
    model: nn.Module, images: Tensor | Rows, labels: Tensor, data: Data, config: RunConfig, environment: Environment
) -> Generator[None, None, Evaluation]:
    """Ask the net about images uint8 [N, C, H, W]; yields after each batch, and returns an ``Evaluation``.

    Nothing is read back from the device before the last batch. With ``flip_averaging`` the probabilities of an image and
    of its mirror image are averaged.
    """
    release_freed_memory()
    model.eval()
    answers = []
    with contextlib.closing(in_order(data, images, evaluation_batch(config, data.image_shape, data.device))) as batches:
        for batch in batches:
            answers.append(_log_probabilities(model, batch, data, config, environment))
            yield
    model.train()
    release_freed_memory()
    log_probabilities = torch.cat(answers)
    predicted = log_probabilities.argmax(1)
    losses = -log_probabilities.gather(1, labels[:, None]).double()
    correct = int((predicted == labels).sum())
    return Evaluation(float(losses.mean()), correct, len(images), predicted.cpu(), log_probabilities.cpu())


@torch.inference_mode()  # here and not around the loop: its caller would be in that mode at every yield
def _log_probabilities(
    model: nn.Module, images: Tensor, data: Data, config: RunConfig, environment: Environment
) -> Tensor:
    first = _answer(model, images, data, environment)
    if not config.flip_averaging:
        return first
    return torch.logaddexp(first, _answer(model, images.flip(3), data, environment)) - math.log(2)


def _answer(model: nn.Module, images: Tensor, data: Data, environment: Environment) -> Tensor:
    """Log-probabilities [N, K] in float32, whatever the net calculates in."""
    with torch.autocast(data.device.type, environment.autocast_dtype, enabled=environment.autocast_dtype is not None):
        logits = model(net_input(images, data))
    return torch.log_softmax(logits.float(), dim=1)


def evaluation_batch(config: RunConfig, image_shape: tuple[int, int, int], device: torch.device) -> int:
    """Images per batch: on the CPU 1,000 as the notebook has it, fewer where a wide net would need much memory."""
    channels, height, width = image_shape
    widest = max(channels, resolved_width(config) if config.model != "fc" else 1) * height * width
    most, activations = (_CPU_BATCH, _CPU_ACTIVATIONS) if device.type == "cpu" else (_GPU_BATCH, _GPU_ACTIVATIONS)
    return max(1, min(most, activations // widest))


def to_keep(evaluation: Evaluation, labels: Tensor) -> dict[str, NDArray[np.generic]]:
    """The answers as arrays, as the run folder keeps them.

    ``predicted`` uint16 [N], ``confidence`` float32 [N]; then ``log_probabilities`` float16 [N, K], or past 64 classes
    ``best_classes`` uint16 [N, 5] and ``best_log_probabilities`` float16 [N, 5], descending, with
    ``label_log_probability`` float16 [N]. What lies below the range of float16 is kept as its lowest number.
    """
    log_probabilities = evaluation.log_probabilities
    rows = {
        "predicted": evaluation.predicted.numpy().astype(np.uint16),
        "confidence": log_probabilities.max(1).values.exp().numpy(),
    }
    if log_probabilities.shape[1] <= MOST_CLASSES_IN_FULL:
        return {**rows, "log_probabilities": _half(log_probabilities)}
    best = log_probabilities.topk(_NUM_BEST, dim=1)
    own = log_probabilities.gather(1, labels.cpu()[:, None]).squeeze(1)
    return {
        **rows,
        "best_classes": best.indices.numpy().astype(np.uint16),
        "best_log_probabilities": _half(best.values),
        "label_log_probability": _half(own),
    }


def _half(values: Tensor) -> NDArray[np.generic]:
    half: NDArray[np.generic] = values.clamp(min=_HALF.min).to(torch.float16).numpy()
    return half
