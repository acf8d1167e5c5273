"""Pooling of token vectors."""

import mlx.core as mx


def masked_mean(x: mx.array, mask: mx.array) -> mx.array:
    """The mean of x [B, T, d] over the tokens whose mask [B, T] is non-zero: [B, d]. A row without tokens gives 0."""
    weight = mask.astype(x.dtype)[..., None]
    return mx.sum(x * weight, axis=1) / mx.maximum(mx.sum(weight, axis=1), 1.0)
