"""From the hidden states of a text's tokens to one vector."""

from collections.abc import Callable, Sequence

import mlx.core as mx

from ..ops.masked_mean import masked_mean


def _max(x: mx.array, mask: mx.array) -> mx.array:
    return mx.max(mx.where(mask[..., None], x, -mx.inf), axis=1)


def _mean_sqrt_len(x: mx.array, mask: mx.array) -> mx.array:
    """The sum over the tokens, divided by the root of their number."""
    return masked_mean(x, mask) * mx.sqrt(mx.sum(mask, axis=1, keepdims=True).astype(x.dtype))


def _weighted_mean(x: mx.array, mask: mx.array) -> mx.array:
    """The mean with the weights 1, 2, 3, … along the text."""
    weights = (mask * mx.arange(1, mask.shape[1] + 1)).astype(x.dtype)[..., None]  # [B, T, 1]
    return mx.sum(mx.where(mask[..., None], x, 0) * weights, axis=1) / mx.sum(weights, axis=1)


def _last(x: mx.array, mask: mx.array) -> mx.array:
    last = mx.sum(mask, axis=1)[:, None, None] - 1  # [B, 1, 1]
    return mx.take_along_axis(x, last, axis=1)[:, 0]


# By the names of sentence-transformers, in the order in which its older folders join several.
POOLINGS: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "cls": lambda x, _: x[:, 0],
    "max": _max,
    "mean": masked_mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


def pool(x: mx.array, mask: mx.array, modes: Sequence[str]) -> mx.array:
    """x [B, T, d], mask [B, T] (non-zero at tokens; each row starts with one) -> the poolings of `modes`, joined, [B, len(modes) d]."""
    mask = mask != 0
    return mx.concatenate([POOLINGS[mode](x, mask) for mode in modes], axis=-1)
