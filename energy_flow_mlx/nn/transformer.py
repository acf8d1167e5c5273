"""The post-norm transformer encoder of torch, which `mlx.nn` does not have (its layers have no attention bias or dropout)."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..ops.gelu import gelu
from .attention import MultiHeadAttention
from .dropout import Dropout
from .linear import Linear
from .norm import LayerNorm

Activation = Callable[[mx.array], mx.array]


class TransformerEncoderLayer(nn.Module):
    """norm1(x + attention(x)), then norm2(x + feed-forward(x)) (torch.nn.TransformerEncoderLayer, norm_first=False).

    Args:
        dim: d.
        heads: attention heads; must divide d.
        feedforward_dim: width between `linear1` and `linear2`.
        dropout: on attention weights, on the feed-forward's inner units and on both branches.
        eps: of the LayerNorms.
        activation: inside the feed-forward; GELU in its exact form unless given.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward_dim: int,
        dropout: float = 0.1,
        eps: float = 1e-5,
        activation: Activation = gelu,
    ) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, heads, dropout)
        self.linear1 = Linear(dim, feedforward_dim)
        self.linear2 = Linear(feedforward_dim, dim)
        self.norm1 = LayerNorm(dim, eps=eps)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.dropout = Dropout(dropout)
        self.activation = activation

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """x [B, T, d], mask [B, T] bool (True: a token, not padding) -> [B, T, d]."""
        x = self.norm1(x + self.dropout(self.self_attn(x, mask)))
        inner = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return self.norm2(x + self.dropout(inner))


class TransformerEncoder(nn.Module):
    """A stack of TransformerEncoderLayer; see there for the arguments.

    Args:
        layers: how many.
    """

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        feedforward_dim: int,
        dropout: float = 0.1,
        eps: float = 1e-5,
        activation: Activation = gelu,
    ) -> None:
        super().__init__()
        self.layers = [
            TransformerEncoderLayer(dim, heads, feedforward_dim, dropout, eps, activation) for _ in range(layers)
        ]

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """x [B, T, d], mask [B, T] bool -> [B, T, d]."""
        for layer in self.layers:
            x = layer(x, mask)
        return x
