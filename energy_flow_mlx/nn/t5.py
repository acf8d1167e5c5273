"""T5's decoder (Raffel et al. 2019), conditioned on vectors in the place of an encoder's output.

    x = token embedding
    each block:  x += self-attention(RMS norm(x)),  x += attention to the prefix(RMS norm(x)),  x += feed-forward(RMS norm(x))
    logits = head(RMS norm(x))

Attention is not scaled, and positions enter as a bias that the blocks share. Linear layers have no biases.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..ops.embedding import embedding
from ..ops.kernel import as_type
from .attention import attend, merge_heads, split_heads
from .bert import ACTIVATIONS
from .linear import Linear, product
from .norm import RMSNorm
from .precision import weight_in

KeyValues = tuple[mx.array, mx.array]  # [B, heads, K, dk] each
# Tokens [B] at a position (a scalar) and the keys and values so far -> logits [B, V], and those with the tokens' own.
Step = Callable[[mx.array, mx.array, list[KeyValues]], tuple[mx.array, list[KeyValues]]]


@dataclass(frozen=True, kw_only=True)
class T5Settings:
    """Sizes of a decoder.

    buckets, max_distance: of the relative position bias. activation: a name in `ACTIVATIONS`. gated: the feed-forward's activation
    multiplies a second projection (T5 1.1). tied: the head is the token embedding, and its input is scaled by 1/sqrt(dim).
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    head_dim: int
    feedforward_dim: int
    buckets: int = 32
    max_distance: int = 128
    activation: str = "relu"
    gated: bool = False
    tied: bool = True
    eps: float = 1e-6
    dropout: float = 0.1


MOST_DISTANCE = 2**16  # beyond every text; keeps a damaged file from asking for a table that fits no memory


def bucket_numbers(buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance 0..max_distance to an earlier token, int32; longer distances share the last one.

    The first half of the buckets hold one distance each, the others logarithmically more, up to max_distance.
    """
    exact = buckets // 2
    # In float32 and in this order, so that distances on a bucket's edge fall as they do in T5.
    distance = np.arange(max_distance + 1, dtype=np.float32)
    ratio = np.log(np.maximum(distance, 1) / np.float32(exact)) / np.float32(math.log(max_distance / exact))
    large = exact + (ratio * np.float32(buckets - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(large, buckets - 1)).astype(np.int32)


class RelativePositionBias(nn.Module):
    """What is added to attention scores: a learned number per head and bucket of distances, and no look at later tokens."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self.weight = mx.random.normal((settings.buckets, settings.heads)) * settings.dim**-0.5
        self._buckets = mx.array(bucket_numbers(settings.buckets, settings.max_distance))

    def __call__(self, positions: mx.array, keys: int) -> mx.array:
        """Of queries at `positions` [T] to keys at 0..keys-1: [1, heads, T, keys]."""
        distance = positions[:, None] - mx.arange(keys)  # [T, keys]
        bucket = self._buckets[mx.clip(distance, 0, self._buckets.size - 1)]
        bias = embedding(self.weight, bucket).transpose(2, 0, 1)
        return mx.where(distance >= 0, bias, mx.finfo(bias.dtype).min)[None]


class T5Attention(nn.Module):
    """Attention without biases and without scaling; keys and values are made apart from queries, so that they can be kept."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        dim, inner = settings.dim, settings.heads * settings.head_dim
        self.query_proj = _linear(dim, inner, (dim * settings.head_dim) ** -0.5)
        self.key_proj, self.value_proj = (_linear(dim, inner, dim**-0.5) for _ in range(2))
        self.out_proj = _linear(inner, dim, inner**-0.5)
        self.dropout = nn.Dropout(settings.dropout)
        self._heads = settings.heads

    def keys_values(self, x: mx.array) -> KeyValues:
        """x [B, K, d] -> keys and values [B, heads, K, dk]."""
        return split_heads(self.key_proj(x), self._heads), split_heads(self.value_proj(x), self._heads)

    def __call__(self, x: mx.array, keys_values: KeyValues, bias: mx.array | None = None) -> mx.array:
        """x [B, T, d], bias [1, heads, T, K] -> [B, T, d]."""
        query = split_heads(self.query_proj(x), self._heads)
        return self.out_proj(merge_heads(attend(query, *keys_values, scale=1.0, mask=bias, dropout=self.dropout)))


class T5FeedForward(nn.Module):
    """wo(activation(wi x)), or gated: wo(activation(wi_0 x) * wi_1 x)."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        dim, inner = settings.dim, settings.feedforward_dim
        if settings.gated:
            self.wi_0, self.wi_1 = (_linear(dim, inner, dim**-0.5) for _ in range(2))
        else:
            self.wi = _linear(dim, inner, dim**-0.5)
        self.wo = _linear(inner, dim, inner**-0.5)
        self.dropout = nn.Dropout(settings.dropout)
        self._activation = ACTIVATIONS[settings.activation]

    def __call__(self, x: mx.array) -> mx.array:
        """x [B, T, d] -> [B, T, d]."""
        inner = self._activation(self.wi_0(x)) * self.wi_1(x) if "wi_0" in self else self._activation(self.wi(x))
        return self.wo(self.dropout(inner))


class T5Block(nn.Module):
    """Self-attention, attention to the prefix and feed-forward, each after an RMS norm and added to its input."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = T5Attention(settings), T5Attention(settings)
        self.feed_forward = T5FeedForward(settings)
        self.self_norm, self.cross_norm, self.feed_forward_norm = (
            RMSNorm(settings.dim, eps=settings.eps) for _ in range(3)
        )
        self.dropout = nn.Dropout(settings.dropout)

    def __call__(
        self, x: mx.array, bias: mx.array, prefix: KeyValues, past: tuple[KeyValues, mx.array] | None = None
    ) -> tuple[mx.array, KeyValues]:
        """One block.

        Args:
            x: [B, T, d].
            bias: [1, heads, T, K].
            prefix: keys and values of the prefix.
            past: keys and values [B, heads, K, dk] of K places, and the place [1] from which on those of x are written into them; None:
                those of x are all, K = T.

        Returns:
            [B, T, d], and the keys and values attended to.
        """
        normed = self.self_norm(x)
        own = self.self_attn.keys_values(normed)
        if past is not None:
            (keys, values), at = past
            own = mx.slice_update(keys, own[0], at, axes=[2]), mx.slice_update(values, own[1], at, axes=[2])
        x = x + self.dropout(self.self_attn(normed, own, bias))
        x = x + self.dropout(self.cross_attn(self.cross_norm(x), prefix))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), own


class T5Decoder(nn.Module):
    """Tokens and a prefix to the logits of the next tokens. Random weights are drawn as T5 draws them."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(settings.vocab_size, settings.dim)
        self.token_embedding.weight = mx.random.normal((settings.vocab_size, settings.dim))
        self.position_bias = RelativePositionBias(settings)
        self.layers = [T5Block(settings) for _ in range(settings.layers)]
        self.norm = RMSNorm(settings.dim, eps=settings.eps)
        if not settings.tied:
            self.head = _linear(settings.dim, settings.vocab_size, settings.dim**-0.5)
        self.dropout = nn.Dropout(settings.dropout)
        self.settings = settings

    def __call__(self, ids: mx.array, prefix: mx.array) -> mx.array:
        """ids [B, T] and prefix [B, P, d] -> logits [B, T, V] of the token after each, in the dtype of the prefix."""
        bias = self._bias(mx.arange(ids.shape[1]), ids.shape[1], prefix.dtype)
        x = self._embed(ids, prefix.dtype)
        for layer in self.layers:
            x, _ = layer(x, bias, layer.cross_attn.keys_values(prefix))
        return self._logits(x)

    def start(self, prefix: mx.array, room: int) -> tuple[Step, list[KeyValues]]:
        """Begin to generate, one token at a time.

        Shapes do not change from step to step: the cache has its full size at once, and a step looks at all of it.

        Args:
            prefix: [B, P, d].
            room: the most tokens that a text may have.

        Returns:
            The step, and the empty cache: keys and values [B, heads, room, dk] of each block, whose rows may be reordered between steps
            as long as each keeps its prefix.
        """
        fixed = [layer.cross_attn.keys_values(prefix) for layer in self.layers]
        shape = (prefix.shape[0], self.settings.heads, room, self.settings.head_dim)

        def step(tokens: mx.array, position: mx.array, cache: list[KeyValues]) -> tuple[mx.array, list[KeyValues]]:
            at = position.reshape(1)
            bias, x = self._bias(at, room, prefix.dtype), self._embed(tokens[:, None], prefix.dtype)
            kept = []
            for layer, held, past in zip(self.layers, fixed, cache, strict=True):
                x, own = layer(x, bias, held, (past, at))
                kept.append(own)
            return self._logits(x)[:, 0], kept

        return step, [(mx.zeros(shape, prefix.dtype), mx.zeros(shape, prefix.dtype)) for _ in self.layers]

    def _bias(self, positions: mx.array, keys: int, dtype: mx.Dtype) -> mx.array:
        return as_type(self.position_bias(positions, keys), dtype)

    def _embed(self, ids: mx.array, dtype: mx.Dtype) -> mx.array:
        table = weight_in(self.token_embedding.weight, dtype, self.training)
        return self.dropout(embedding(table, ids))

    def _logits(self, x: mx.array) -> mx.array:
        x = self.dropout(self.norm(x))
        if self.settings.tied:
            return product(self.token_embedding, x * self.settings.dim**-0.5)
        return self.head(x)


def _linear(inputs: int, outputs: int, deviation: float) -> Linear:
    layer = Linear(inputs, outputs, bias=False)
    layer.weight = mx.random.normal((outputs, inputs)) * deviation
    return layer
