"""Multi-head attention: self-attention with biases, and the scores that all kinds share, with dropout on the attention weights."""

import math

import mlx.core as mx
import mlx.nn as nn

from .dropout import Dropout
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
        self.dropout = Dropout(dropout)

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """x [B, T, d], mask [B, T] bool (True: attend to this token) -> [B, T, d]."""
        value = split_heads(self.value_proj(x), self.heads)
        query, key, scale, mask = self._scored(x, mask)
        return self.out_proj(merge_heads(attend(query, key, value, scale=scale, mask=mask, dropout=self.dropout)))

    def weights(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        """How much each token looks at each other one: x [B, T, d], mask [B, T] bool -> [B, heads, T, T], whose rows sum to 1."""
        query, key, scale, mask = self._scored(x, mask)
        return attention_weights(query, key, scale=scale, mask=mask)

    def _scored(self, x: mx.array, mask: mx.array | None) -> tuple[mx.array, mx.array, float, mx.array | None]:
        """Query and key [B, heads, T, d / heads], the scale of their product, and the mask [B, 1, 1, T]."""
        query, key = (split_heads(project(x), self.heads) for project in (self.query_proj, self.key_proj))
        return query, key, 1.0 / math.sqrt(x.shape[-1] // self.heads), None if mask is None else mask[:, None, None, :]


def split_heads(x: mx.array, heads: int) -> mx.array:
    """[B, T, heads * dk] -> [B, heads, T, dk]."""
    batch, length, _ = x.shape
    return x.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """[B, heads, T, dk] -> [B, T, heads * dk]."""
    batch, _, length, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, -1)


def attend(
    query: mx.array, key: mx.array, value: mx.array, *, scale: float, mask: mx.array | None, dropout: nn.Dropout
) -> mx.array:
    """softmax(scale * query key^T) value.

    Args:
        query: [B, heads, T, dk].
        key, value: [B, heads, K, dk].
        mask: of a shape that broadcasts to [B, heads, T, K]: bool (True: attend), or numbers that are added to the scores.
        dropout: on the attention weights, while it is in training mode.

    Returns:
        [B, heads, T, dk].
    """
    # MLX's fused attention cannot drop weights, and a mask of numbers has gradients, which not every backend gives.
    if dropout.training and (dropout._p_1 < 1 or not (mask is None or mask.dtype == mx.bool_)):
        return dropout(attention_weights(query, key, scale=scale, mask=mask)) @ value
    return mx.fast.scaled_dot_product_attention(query, key, value, scale=scale, mask=mask)


def attention_weights(query: mx.array, key: mx.array, *, scale: float, mask: mx.array | None) -> mx.array:
    """softmax(scale * query key^T) [B, heads, T, K]. The arguments are those of `attend`."""
    scores = (query * scale) @ key.transpose(0, 1, 3, 2)
    if mask is not None and mask.dtype == mx.bool_:
        # The lowest finite number, not -inf: a row that masks everything averages instead of turning into NaN.
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return mx.softmax(scores, axis=-1, precise=True)
