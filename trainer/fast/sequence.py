"""Changes to the order and the kind of layers in an ``nn.Sequential``. Parameters and their names stay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

Replacement = tuple[nn.Module, int]  # a layer, and the number of layers that it replaces
Faster = Callable[[Sequence[nn.Module]], Replacement | None]


def replace(net: nn.Sequential, faster: Faster) -> nn.Sequential:
    """A net in which single layers stand for several, each under the name of the first layer that it replaces.

    ``faster`` is given the rest of the layers at each position. It returns None to keep the first of them.
    """
    names, layers = zip(*net.named_children(), strict=True)
    result: OrderedDict[str, nn.Module] = OrderedDict()
    position = 0
    while position < len(layers):
        layer, count = faster(layers[position:]) or (layers[position], 1)
        result[names[position]] = layer
        position += count
    return nn.Sequential(result)


def pool_before_relu(net: nn.Sequential) -> nn.Sequential:
    """A net in which max-pooling comes before ReLU where it came right after it, so that ReLU has a quarter of the work.

    Outputs and gradients are the same bits in either order. Where the largest pixel of a window is not above 0, the
    output is 0 and no gradient passes.
    """
    layers = list(net.named_children())
    for index, ((_relu_name, relu), (_pool_name, pool)) in enumerate(pairwise(layers)):
        if isinstance(relu, nn.ReLU) and isinstance(pool, nn.MaxPool2d):
            layers[index], layers[index + 1] = layers[index + 1], layers[index]
    return nn.Sequential(OrderedDict(layers))


def halves(layer: nn.Module) -> bool:
    """Whether the layer is max-pooling over windows of 2 x 2 pixels that do not overlap."""
    return isinstance(layer, nn.MaxPool2d) and (layer.kernel_size, layer.stride, layer.padding) == (2, 2, 0)
