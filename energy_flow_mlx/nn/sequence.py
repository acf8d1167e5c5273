"""Lists of layers as modules hold them."""

from collections.abc import Callable, Sequence

import mlx.core as mx


def run(layers: Sequence[Callable[[mx.array], mx.array]], x: mx.array) -> mx.array:
    """Apply layers in order.

    Modules keep their layers in plain lists rather than in `nn.Sequential`, so that a parameter is named as in torch:
    `projection.4.weight`, not `projection.layers.4.weight`.
    """
    for layer in layers:
        x = layer(x)
    return x
