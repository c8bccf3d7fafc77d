"""BatchNorm, max-pooling and ReLU as one layer on a CPU. The arithmetic is in ``norm_pool_kernels``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.fast import norm_pool_kernels as kernels
from trainer.fast.sequence import Replacement, halves

_PIECES = 8  # of a batch, divided among the threads; sums of pieces are added in order, whatever the number of threads
_SMALL = 1 << 17  # values in a batch below which a single thread is faster
Array = NDArray[Any]


class NormPoolReLU(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, then max-pooling over 2 x 2 windows unless ``pooling`` is None, then ReLU.

    ``pooling`` is "down" or "up": how half of an odd height or width is rounded. Images are float32 or bfloat16
    [N, C, H, W], and outputs [N, C, P, Q] in the same dtype. Parameters, running statistics and their names are those of
    BatchNorm. There is no backward pass in evaluation mode. If there is only one value per channel, which has no variance,
    PyTorch raises ``ValueError``; this layer returns ReLU(bias) and does not change the running statistics.
    """

    def __init__(self, norm: nn.BatchNorm2d, pooling: str | None) -> None:
        with torch.device("meta"):
            super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias, self.pooling = norm.weight, norm.bias, pooling
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def forward(self, input: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            scale, shift = _affine(self.weight, self.bias, self.running_mean, self.running_var, self.eps)
            return _normalized(_channels_last(input), scale, shift, self.pooling)
        output: Tensor
        output, mean, variance = _NormPoolReLU.apply(input, self.weight, self.bias, self.eps, self.pooling)
        count = input.numel() // self.num_features
        if count == 1:
            return output
        variance *= count / (count - 1)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance, self.momentum or 0.0)
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return output


class _NormPoolReLU(torch.autograd.Function):
    """(images [N, C, H, W], weight [C], bias [C], eps, pooling) -> (output [N, C, P, Q], mean [C], variance [C]).

    Mean and variance are those of the batch, float32, and have no gradients. The variance is not corrected for bias.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, eps: float, pooling: str | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        pixels = _channels_last(images)
        rows = _array(pixels).reshape(-1, len(weight))
        origin = pixels.flatten(0, 2)[0].float()
        sums = torch.from_numpy(_sums(kernels.moments, rows, origin.numpy())) / len(rows)
        mean, variance = sums[0] + origin, (sums[1] - sums[0] ** 2).clamp(min=0)
        scale, shift = _affine(weight, bias, mean, variance, eps)
        ctx.save_for_backward(pixels, scale, shift, mean, (variance + eps).rsqrt())
        ctx.pooling = pooling
        mean, variance = mean.float(), variance.float()
        ctx.mark_non_differentiable(mean, variance)
        return _normalized(pixels, scale, shift, pooling), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_others: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        pixels, scale, shift, mean, inverse = ctx.saved_tensors
        result = torch.empty_like(pixels)
        arrays = [_array(pixels), _array(_channels_last(gradient.to(pixels.dtype)))]
        arrays = arrays if ctx.pooling else [array.reshape(-1, len(scale)) for array in arrays]
        affine = [values.numpy() for values in (scale, shift, mean.float())]
        sums = _sums(kernels.pool_sums if ctx.pooling else kernels.sums, *arrays, *affine)
        bias_gradient, product = torch.from_numpy(sums)
        weight_gradient = product * inverse
        # Ioffe and Szegedy, "Batch Normalization", 2015, section 3: from the gradient that passes ReLU, its mean and its
        # projection onto the normalized pixels are subtracted.
        count = pixels.numel() // len(scale)
        slope, offset = -scale * inverse * weight_gradient / count, -scale * bias_gradient / count
        factors = [values.numpy() for values in (scale, slope.float(), offset.float())]
        kernel = kernels.pool_backward if ctx.pooling else kernels.backward
        _in_pieces(kernel, *arrays, *affine, *factors, _array(result).reshape(arrays[0].shape))
        return result.permute(0, 3, 1, 2), weight_gradient.float(), bias_gradient.float(), None, None


def _affine(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """BatchNorm as pixel * scale + shift. Returns scale and shift, both float32 [C]."""
    scale = weight.detach().double() / (variance.double() + eps).sqrt()
    return scale.float(), (bias.detach().double() - mean.double() * scale).float()


def _normalized(pixels: Tensor, scale: Tensor, shift: Tensor, pooling: str | None) -> Tensor:
    """Scale and shift pixels [N, H, W, C], then pool and apply ReLU. Returns [N, C, P, Q] in channels_last order."""
    count, height, width, channels = pixels.shape
    up = 1 if pooling == "up" else 0
    sides = ((height + up) // 2, (width + up) // 2) if pooling else (height, width)
    output = pixels.new_empty(count, *sides, channels)
    arrays = [_array(pixels), scale.numpy(), shift.numpy(), _array(output)]
    if pooling:
        _in_pieces(kernels.pool_forward, *arrays)
    else:
        rows = [array if array.ndim == 1 else array.reshape(-1, channels) for array in arrays]
        _in_pieces(kernels.forward, *rows)
    return output.permute(0, 3, 1, 2)


def _sums(kernel: Callable[..., None], *arrays: Array) -> Array:
    """Call a kernel that sums over a batch. Returns the sums, float64 [2, C]."""
    sums = np.zeros((_PIECES, 2, arrays[0].shape[-1]))
    _in_pieces(kernel, *arrays, sums=sums)
    total: Array = sums.sum(0)
    return total


def _in_pieces(kernel: Callable[..., None], *arrays: Array, sums: Array | None = None) -> None:
    """Call a kernel for each piece of a batch, on as many threads as PyTorch uses.

    Arrays with one dimension are per channel and passed whole. The others are split along their first dimension, images or
    rows. ``sums``, if given, is [pieces, 2, C], and each piece adds to its own entry.
    """
    count, threads = len(arrays[0]), torch.get_num_threads()
    if arrays[0].size < _SMALL:
        threads = 1

    def work(first: int) -> None:
        for number in range(first, _PIECES, threads):
            piece = slice(count * number // _PIECES, count * (number + 1) // _PIECES)
            parts = [array if array.ndim == 1 else array[piece] for array in arrays]
            kernel(*parts, *([] if sums is None else [sums[number]]))

    others = [_pool(threads).submit(work, first) for first in range(1, min(threads, _PIECES))]
    try:
        work(0)
    finally:
        wait(others)
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="norm")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads of the parent do not exist in the child


def _array(tensor: Tensor) -> Array:
    """A tensor as an array that shares its memory. NumPy has no bfloat16, so its bits become uint16."""
    array: Array = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return array


def _channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C], contiguous."""
    return images.detach().permute(0, 2, 3, 1).contiguous()


def faster(layers: Sequence[nn.Module]) -> Replacement | None:
    """For ``sequence.replace``: replace BatchNorm, 2 x 2 max-pooling if there is any, and ReLU by a ``NormPoolReLU``."""
    norm, rest = layers[0], layers[1:]
    if not isinstance(norm, nn.BatchNorm2d):
        return None
    pooling = None
    if rest and isinstance(rest[0], nn.MaxPool2d) and halves(rest[0]):
        pooling = "up" if rest[0].ceil_mode else "down"
        rest = rest[1:]
    if not (rest and isinstance(rest[0], nn.ReLU)):
        return None
    return NormPoolReLU(norm, pooling), 2 if pooling is None else 3
