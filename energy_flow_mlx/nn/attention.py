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
        batch, length, dim = x.shape

        def split(projected: mx.array) -> mx.array:  # [B, heads, T, d / heads]
            return projected.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3)

        query, key, value = split(self.query_proj(x)), split(self.key_proj(x)), split(self.value_proj(x))
        scale = 1.0 / math.sqrt(dim // self.heads)
        attend = None if mask is None else mask[:, None, None, :]
        if self.training and self.dropout._p_1 < 1:
            # MLX's fused attention cannot drop weights.
            scores = (query * scale) @ key.transpose(0, 1, 3, 2)
            if attend is not None:
                # The lowest finite number, not -inf: a row that masks everything averages instead of turning into NaN.
                scores = mx.where(attend, scores, mx.finfo(scores.dtype).min)
            mixed = self.dropout(mx.softmax(scores, axis=-1, precise=True)) @ value
        else:
            mixed = mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=attend)
        return self.out_proj(mixed.transpose(0, 2, 1, 3).reshape(batch, length, dim))
