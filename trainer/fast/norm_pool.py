"""BatchNorm with the max-pooling and the ReLU that follow it as one layer on a CPU; see ``trainer.fast.norm_pool_kernels``."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.fast import norm_pool_kernels as kernels

_PIECES = 8  # of a batch, shared by the threads; sums are added in their order, so they don't depend on the threads
_SMALL = 1 << 17  # pixels times channels that one thread does faster alone
Array = NDArray[Any]


class NormPoolReLU(nn.BatchNorm2d):
    """``nn.BatchNorm2d``, then max-pooling by 2 where ``pooling`` is "down" or "up" (how odd sides are halved), then ReLU.

    Images [N, C, H, W] in float32 or bfloat16 become [N, C, P, Q] in the same dtype. Parameters, running statistics and
    their names are those of BatchNorm. In evaluation there is no backward pass. One value a channel, where PyTorch gives
    up, has no deviation: it answers ReLU(bias) and leaves the running statistics as they are.
    """

    def __init__(self, norm: nn.BatchNorm2d, pooling: str | None) -> None:
        with torch.device("meta"):
            super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias, self.pooling = norm.weight, norm.bias, pooling
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def forward(self, input: Tensor) -> Tensor:
        known = [one for one in (self.running_mean, self.running_var) if one is not None]
        if not self.training:
            scale, shift = _affine(self.weight, self.bias, known[0], known[1], self.eps)
            return _normalized(_channels_last(input), scale, shift, self.pooling)
        output, *found = _NormPoolReLU.apply(input, self.weight, self.bias, self.eps, self.pooling)
        count = input.numel() // self.num_features
        if count == 1:
            return output  # type: ignore[no-any-return]
        found[1] *= count / (count - 1)
        with torch.no_grad():
            for running, one in zip(known, found, strict=True):
                running.lerp_(one, self.momentum or 0.0)
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return output  # type: ignore[no-any-return]


class _NormPoolReLU(torch.autograd.Function):
    """(images, weight [C], bias [C], eps, pooling) -> (output, mean [C], variance [C]) over the batch."""

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
        affine = [one.numpy() for one in (scale, shift, mean.float())]
        of_bias, product = torch.from_numpy(_sums(kernels.pool_sums if ctx.pooling else kernels.sums, *arrays, *affine))
        of_weight = product * inverse
        count = pixels.numel() // len(scale)
        # Ioffe and Szegedy 2015, section 3: what passes, less its mean and its part along the normalised pixels
        slope, offset = -scale * inverse * of_weight / count, -scale * of_bias / count
        _in_pieces(
            kernels.pool_backward if ctx.pooling else kernels.backward, *arrays, *affine, scale.numpy(),
            slope.float().numpy(), offset.float().numpy(), _array(result).reshape(arrays[0].shape),
        )  # fmt: skip
        return result.permute(0, 3, 1, 2), of_weight.float(), of_bias.float(), None, None


def _affine(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """BatchNorm as pixel * scale + shift: float32 [C] each."""
    scale = weight.detach().double() / (variance.double() + eps).sqrt()
    return scale.float(), (bias.detach().double() - mean.double() * scale).float()


def _normalized(pixels: Tensor, scale: Tensor, shift: Tensor, pooling: str | None) -> Tensor:
    """[N, H, W, C] -> [N, C, P, Q], channels last."""
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
    """What a kernel sums over a batch: float64 [2, C]."""
    sums = np.zeros((_PIECES, 2, arrays[0].shape[-1]))
    _in_pieces(kernel, *arrays, sums=sums)
    total: Array = sums.sum(0)
    return total


def _in_pieces(kernel: Callable[..., None], *arrays: Array, sums: Array | None = None) -> None:
    """Call a kernel on pieces of a batch, on as many threads as PyTorch takes.

    Arrays of one dimension are by channel, the others by image or by row; each piece has its own of ``sums``.
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


os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads stay behind in the parent


def _array(rows: Tensor) -> Array:
    """The memory of a tensor; bfloat16 as uint16."""
    array: Array = rows.view(torch.uint16).numpy() if rows.dtype == torch.bfloat16 else rows.numpy()
    return array


def _channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C], contiguous."""
    return images.detach().permute(0, 2, 3, 1).contiguous()


def fuse(model: nn.Sequential) -> nn.Sequential:
    """The same net with each BatchNorm and the layers behind it, max-pooling by 2 or none and ReLU, in one layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    rest = iter(model.named_children())
    for name, layer in rest:
        if isinstance(layer, nn.BatchNorm2d):
            _next, following = next(rest)
            pooling = None
            if isinstance(following, nn.MaxPool2d):
                pooling = "up" if following.ceil_mode else "down"
                _next, following = next(rest)
            assert isinstance(following, nn.ReLU)
            layer = NormPoolReLU(layer, pooling)
        layers[name] = layer
    return nn.Sequential(layers)
