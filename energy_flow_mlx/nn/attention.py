"""Multi-head self-attention with biases and dropout on the attention weights."""

import math

import mlx.core as mx
import mlx.nn as nn

from .linear import Linear


class MultiHeadAttention(nn.Module):
    """Self-attention as torch.nn.MultiheadAttention computes it, with separate query, key and value projections.

    Args:
        dim: d; `heads` must divide it.
        heads: number of heads.
        dropout: probability of dropping an attention weight while training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}")
        self.heads = heads
        self.query_proj = Linear(dim, dim)
        self.key_proj = Linear(dim, dim)
        self.value_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """x [B, T, d], mask [B, T] bool (True: attend to this token) -> [B, T, d]."""
        value = self._split(self.value_proj(x))
        if self.training and self.dropout._p_1 < 1:
            # MLX's fused attention cannot drop weights.
            mixed = self.dropout(self.weights(x, mask)) @ value
        else:
            query, key = self._split(self.query_proj(x)), self._split(self.key_proj(x))
            attend = None if mask is None else mask[:, None, None, :]
            mixed = mx.fast.scaled_dot_product_attention(query, key, value, scale=self._scale(x), mask=attend)
        return self.out_proj(mixed.transpose(0, 2, 1, 3).reshape(x.shape))

    def weights(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """How much each token looks at each other one: x [B, T, d], mask [B, T] bool -> [B, heads, T, T], whose rows sum to 1."""
        query, key = self._split(self.query_proj(x)), self._split(self.key_proj(x))
        scores = (query * self._scale(x)) @ key.transpose(0, 1, 3, 2)
        if mask is not None:
            # The lowest finite number, not -inf: a row that masks everything averages instead of turning into NaN.
            scores = mx.where(mask[:, None, None, :], scores, mx.finfo(scores.dtype).min)
        return mx.softmax(scores, axis=-1, precise=True)

    def _scale(self, x: mx.array) -> float:
        return 1.0 / math.sqrt(x.shape[-1] // self.heads)

    def _split(self, projected: mx.array) -> mx.array:
        """[B, T, d] -> [B, heads, T, d / heads]."""
        batch, length, _ = projected.shape
        return projected.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)
