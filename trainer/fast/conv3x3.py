"""A 3 x 3 convolution layer that uses ``winograd.convolve`` or ``columns.convolve`` where they are faster than PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.fast.sequence import Faster, Replacement

_FEWEST_CHANNELS = 128  # input channels; with fewer, preparing the matrices takes as long as the products save
Convolve = Callable[[Tensor, Tensor, Tensor], Tensor]  # (images [N, C, H, W], weight [K, C, 3, 3], bias [K])


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d`` with kernel 3 and padding 1. Layers with enough channels are computed by ``convolve``."""

    def __init__(self, layer: nn.Conv2d, convolve: Convolve) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_channels, layer.out_channels, 3, padding=1)
        self.weight, self.bias, self._convolve = layer.weight, layer.bias, convolve

    def forward(self, input: Tensor) -> Tensor:
        if self.bias is None or self.in_channels < _FEWEST_CHANNELS:
            return super().forward(input)
        if input.shape[2:] == (1, 1):  # all weights but the middle one are multiplied by the padding, which is 0
            return F.linear(input.flatten(1), self.weight[:, :, 1, 1], self.bias)[:, :, None, None]
        return self._convolve(input, self.weight, self.bias)


def faster(convolve: Convolve) -> Faster:
    """For ``sequence.replace``: replace every 3 x 3 convolution with padding 1 by a ``Conv3x3``."""

    def replacement(layers: Sequence[nn.Module]) -> Replacement | None:
        layer = layers[0]
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.padding == (1, 1):
            return Conv3x3(layer, convolve), 1
        return None

    return replacement
