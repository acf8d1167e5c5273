"""Lists of layers as modules hold them."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..ops.bias_gelu_norm import bias_gelu_norm
from ..ops.kernel import use_kernel
from .linear import Linear, product


def run(layers: Sequence[Callable[[mx.array], mx.array]], x: mx.array) -> mx.array:
    """Apply layers in order; where kernels are picked, Linear, GELU and LayerNorm in a row as one product and one kernel.

    Modules keep their layers in plain lists rather than in `nn.Sequential`, so that a parameter is named as in torch:
    `projection.4.weight`, not `projection.layers.4.weight`.
    """
    fused = use_kernel("bias_gelu_norm")
    at = 0
    while at < len(layers):
        if fused and _one_kernel(layers[at : at + 3]):
            linear, _, norm = layers[at : at + 3]
            x = _linear_gelu_norm(linear, norm, x)
            at += 3
        else:
            x = layers[at](x)
            at += 1
    return x


def _one_kernel(layers: Sequence[Any]) -> bool:
    """Whether these are Linear with a bias, the exact GELU and LayerNorm with weight and bias."""
    kinds = (Linear, nn.GELU, nn.LayerNorm)
    if len(layers) < 3 or not all(map(isinstance, layers, kinds)):
        return False
    linear, gelu, norm = layers
    return "bias" in linear and gelu._approx == "none" and "bias" in norm


def _linear_gelu_norm(linear: Any, norm: Any, x: mx.array) -> mx.array:
    return bias_gelu_norm(product(linear, x), linear.bias, norm.weight, norm.bias, epsilon=norm.eps)
