"""Learned positional encoding that starts sinusoidal."""

import math

import mlx.core as mx
import mlx.nn as nn

from ..ops.kernel import as_type


class PositionalEncoding(nn.Module):
    """Adds a learned row per position; the rows start as sines and cosines.

        weight[p, 2i] = sin(p / 10000^(2i/d))    weight[p, 2i+1] = cos(p / 10000^(2i/d))

    Args:
        positions: how many positions there are, P.
        dim: d.
    """

    def __init__(self, positions: int, dim: int) -> None:
        super().__init__()
        frequency = mx.exp(mx.arange(0, dim, 2) * (-math.log(10000.0) / dim))
        angle = mx.arange(positions)[:, None] * frequency[None]
        self.weight = mx.stack([mx.sin(angle), mx.cos(angle)], axis=-1).reshape(positions, -1)[:, :dim]

    def __call__(self, x: mx.array) -> mx.array:
        """x [B, T, d] -> [B, T, d], of the dtype of x; T must be at most P."""
        if x.shape[1] > self.weight.shape[0]:
            raise ValueError(f"x: {x.shape[1]} tokens came, the positional encoding covers {self.weight.shape[0]}")
        return x + as_type(self.weight[: x.shape[1]], x.dtype)
