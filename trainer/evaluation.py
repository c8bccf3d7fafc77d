"""Evaluate a net on a split: its loss, the number of correct predictions, and the predictions to keep."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.config import RunConfig
from trainer.environment import Environment
from trainer.fast.memory import release_freed_memory
from trainer.loader import Data, Rows, in_order, net_input
from trainer.models import Shape

# The most images in a batch, and the most numbers in the output of its first layer. On the CPU a batch of 2,000 takes
# 37 % to 56 % longer per image than one of 1,000 (cnn, lenet), and vgg predicts 1.1 to 1.3 times as many images per
# second in batches of 128 as of 64; 256 is no faster. The values for a GPU were not measured; memory is the limit
# there.
_CPU_BATCH, _CPU_ACTIVATIONS = 1000, 1 << 23  # 32 MiB
_GPU_BATCH, _GPU_ACTIVATIONS = 4000, 1 << 26  # 256 MiB
MOST_CLASSES_IN_FULL = 64
_NUM_BEST = 5
_HALF = torch.finfo(torch.float16)


@dataclass(frozen=True)
class Evaluation:
    """The result for one split; ``loss`` is the mean negative log-likelihood in nats."""

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
    """Predict the classes of images uint8 [N, C, H, W]. Yields after each batch and returns an ``Evaluation``.

    Nothing is copied back from the device before the last batch. With ``flip_averaging`` the probabilities for an image
    and for its mirror image are averaged.
    """
    release_freed_memory()
    model.eval()
    results = []
    with contextlib.closing(in_order(data, images, evaluation_batch(model, data.image_shape, data.device))) as batches:
        for batch in batches:
            results.append(_log_probabilities(model, batch, data, config, environment))
            yield
    model.train()
    release_freed_memory()
    log_probabilities = torch.cat(results)
    predicted = log_probabilities.argmax(1)
    losses = -log_probabilities.gather(1, labels[:, None]).double()
    correct = int((predicted == labels).sum())
    return Evaluation(float(losses.mean()), correct, len(images), predicted.cpu(), log_probabilities.cpu())


@torch.inference_mode()  # not around the loop: the caller would be in inference mode at every yield
def _log_probabilities(
    model: nn.Module, images: Tensor, data: Data, config: RunConfig, environment: Environment
) -> Tensor:
    plain = _predict(model, images, data, environment)
    if not config.flip_averaging:
        return plain
    return torch.logaddexp(plain, _predict(model, images.flip(3), data, environment)) - math.log(2)


def _predict(model: nn.Module, images: Tensor, data: Data, environment: Environment) -> Tensor:
    """Log-probabilities float32 [N, K], whatever the precision in which the net computes."""
    with environment.autocast():
        logits = model(net_input(images, data))
    return torch.log_softmax(logits.float(), dim=1)


def evaluation_batch(model: nn.Module, image_shape: Shape, device: torch.device) -> int:
    """Images per batch: 1,000 on the CPU and 4,000 on a GPU, fewer if the first convolution's output is large."""
    channels, height, width = image_shape
    first_convolution = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first_convolution is not None:
        channels = max(channels, first_convolution.out_channels)
    most, activations = (_CPU_BATCH, _CPU_ACTIVATIONS) if device.type == "cpu" else (_GPU_BATCH, _GPU_ACTIVATIONS)
    return max(1, min(most, activations // (channels * height * width)))


def to_keep(evaluation: Evaluation, labels: Tensor) -> dict[str, NDArray[np.generic]]:
    """The predictions as the arrays that are stored in the run folder.

    ``predicted`` uint16 [N], ``confidence`` float32 [N] and ``log_probabilities`` float16 [N, K]. With more than 64
    classes the latter are replaced by ``best_classes`` uint16 [N, 5] and ``best_log_probabilities`` float16 [N, 5] in
    descending order, and ``label_log_probability`` float16 [N]. Values below the range of float16 are clipped to its
    minimum.
    """
    log_probabilities = evaluation.log_probabilities
    rows = {
        "predicted": evaluation.predicted.numpy().astype(np.uint16),
        "confidence": log_probabilities.max(1).values.exp().numpy(),
    }
    if log_probabilities.shape[1] <= MOST_CLASSES_IN_FULL:
        return {**rows, "log_probabilities": _half(log_probabilities)}
    best = log_probabilities.topk(_NUM_BEST, dim=1)
    of_label = log_probabilities.gather(1, labels.cpu()[:, None]).squeeze(1)
    return {
        **rows,
        "best_classes": best.indices.numpy().astype(np.uint16),
        "best_log_probabilities": _half(best.values),
        "label_log_probability": _half(of_label),
    }


def _half(values: Tensor) -> NDArray[np.generic]:
    half: NDArray[np.generic] = values.clamp(min=_HALF.min).to(torch.float16).numpy()
    return half
