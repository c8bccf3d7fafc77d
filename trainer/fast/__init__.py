"""Faster ways to compute what PyTorch's layers compute.

``ways_of`` chooses the ways for a net on a device. ``speed_up`` and ``speed_up_step`` apply them. A run records its ways
in ``environment.json`` and uses the same when it resumes, because each way rounds differently. docs/speed.md explains
each choice, and docs/lab has the measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from trainer.fast import columns, conv3x3, graphs, sequence, winograd

_MOST_FUSED_CHANNELS = 20  # input channels of a 5 x 5 convolution; with 32, PyTorch's convolution is as fast


@dataclass(frozen=True)
class Ways:
    """The ways in which a run computes. The defaults are PyTorch's layers without CUDA graphs."""

    channels_last: bool = False  # memory order of the weights; the output of a convolution has the order of its weights
    convolution: str = (
        "direct"  # or winograd or columns (3 x 3 kernels), or fused (5 x 5 kernels with pooling and ReLU)
    )
    fused_norm: bool = False  # BatchNorm, pooling and ReLU are one layer
    graphs: bool = False  # training steps are replayed from CUDA graphs


def ways_of(net: nn.Module, device: str, precision: str) -> Ways:
    """The fastest ways to train a net on a device (cpu, cuda:N or mps) in a precision (float32, bfloat16 or float16)."""
    has_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    if device.startswith("cuda"):  # steps with the gradient scaler of float16 are not recorded as graphs
        return Ways(channels_last=has_norm and precision == "bfloat16", graphs=precision != "float16")
    if device != "cpu":
        return Ways()
    convolutions = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    convolution = _convolution_on_cpu(convolutions, precision)
    # The fused kernels use another memory order. Otherwise channels last is faster for every net with convolutions.
    channels_last = bool(convolutions) and convolution != "fused"
    return Ways(channels_last=channels_last, convolution=convolution, fused_norm=has_norm)


def _convolution_on_cpu(convolutions: list[nn.Conv2d], precision: str) -> str:
    kernels = {layer.kernel_size for layer in convolutions}
    if kernels == {(3, 3)}:
        return "winograd" if precision == "float32" else "columns"
    few_channels = all(layer.in_channels <= _MOST_FUSED_CHANNELS for layer in convolutions)
    return "fused" if kernels == {(5, 5)} and few_channels and precision == "float32" else "direct"


def speed_up(net: nn.Sequential, ways: Ways) -> nn.Sequential:
    """The net with faster layers. It keeps its parameters and their names, and may share layers with ``net``."""
    net = sequence.pool_before_relu(net)
    # Importing Numba takes 0.2 s, and compiling these kernels takes half a minute the first time, so they are imported only
    # for nets that use them.
    if ways.fused_norm:
        from trainer.fast import norm_pool

        net = sequence.replace(net, norm_pool.faster)
    if ways.convolution == "fused":
        from trainer.fast import conv_pool

        net = sequence.replace(net, conv_pool.faster)
    if ways.convolution == "winograd":
        net = sequence.replace(net, conv3x3.faster(winograd.convolve))
    if ways.convolution == "columns":
        net = sequence.replace(net, conv3x3.faster(columns.convolve))
    return net.to(memory_format=torch.channels_last) if ways.channels_last else net


def speed_up_step(step: graphs.StepFunction, ways: Ways, batch_size: int, device: torch.device) -> graphs.StepFunction:
    """The training step. With ``ways.graphs``, it is replayed from a CUDA graph for batches of ``batch_size`` images."""
    return graphs.GraphedStep(step, batch_size, graphs.Recorder(device)) if ways.graphs else step
