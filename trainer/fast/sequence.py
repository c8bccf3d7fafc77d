"""Replace and reorder layers of an ``nn.Sequential``. Parameters and their names do not change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

Replacement = tuple[nn.Module, int]  # a layer, and the number of layers that it replaces
Faster = Callable[[Sequence[nn.Module]], Replacement | None]


def replace(net: nn.Sequential, faster: Faster) -> nn.Sequential:
    """The net with some layers replaced, each by a layer that may do the work of several.

    ``faster`` is called at each position with the rest of the layers. It returns a layer and how many it replaces, or None
    to keep the first one. A new layer has the name of the first layer that it replaces.
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
    """The net with each ReLU moved behind the max-pooling that follows it, where it has a quarter of the work.

    Outputs and gradients are bit for bit the same in both orders: if the largest pixel of a window is not above 0, the
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
