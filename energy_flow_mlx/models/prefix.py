"""A vector becomes a few vectors that a decoder attends to."""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn

from ..nn import LayerNorm, Linear, run

Layers = Sequence[Callable[[mx.array], mx.array]]


def prefix_layers(inputs: int, inner: int, vectors: int, dim: int, dropout: float) -> list[nn.Module]:
    """Linear(inputs, inner) GELU LN Dropout Linear(inner, vectors * dim), and LN of each vector."""
    return [
        Linear(inputs, inner), nn.GELU(), LayerNorm(inner), nn.Dropout(dropout),
        Linear(inner, vectors * dim), LayerNorm(dim),
    ]  # fmt: skip


def prefix_of(layers: Layers, x: mx.array, vectors: int) -> mx.array:
    """x [B, inputs] -> [B, vectors, dim]; B may be 0."""
    *first, norm = layers
    wide = run(first, x)
    return norm(wide.reshape(x.shape[0], vectors, wide.shape[1] // vectors))
