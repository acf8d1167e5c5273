"""EmbeddingMapper: an embedding becomes a surface of energies."""

import mlx.core as mx
import mlx.nn as nn

from ..nn import Dropout, LayerNorm, Linear, run
from .shapes import Array, as_array, expect_rows, expect_shape


def intermediate_size(embedding_dim: int, surface_dim: int) -> int:
    """M = max(E // 2, 2 S), the width between embedding and surface in mapper and collector."""
    return max(embedding_dim // 2, 2 * surface_dim)


class EmbeddingMapper(nn.Module):
    """Embeddings [B, E] to surfaces [B, H, W].

        Linear(E, M) GELU LN Dropout(p) Linear(M, 2S) GELU LN Dropout(p/2) Linear(2S, S) Tanh
        * energy_scale + energy_bias + positional_encoding

    Args:
        embedding_dim: E.
        width, height: W and H; S = W * H.
        dropout: p; next to the surface half of it.
    """

    def __init__(self, embedding_dim: int, width: int, height: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.width, self.height = width, height
        surface = width * height
        middle = intermediate_size(embedding_dim, surface)
        self.embedding_dim = embedding_dim
        self.projection = [
            Linear(embedding_dim, middle), nn.GELU(), LayerNorm(middle), Dropout(dropout),
            Linear(middle, 2 * surface), nn.GELU(), LayerNorm(2 * surface), Dropout(dropout / 2),
            Linear(2 * surface, surface), nn.Tanh(),
        ]  # fmt: skip
        # Teachers give embeddings of length 1. The default bound of 1/sqrt(E) suits entries of size 1: with entries of
        # 1/sqrt(E) the bias would drown the input and every text would start as nearly the same surface.
        first = self.projection[0]
        first.weight = mx.random.normal((middle, embedding_dim))
        first.bias = mx.zeros((middle,))
        self.energy_scale = mx.ones((1,))
        self.energy_bias = mx.zeros((1,))
        self.positional_encoding = 0.02 * mx.random.normal((height, width))

    def map_to_surface(self, x: Array) -> mx.array:
        """Embeddings x [B, E] -> surfaces [B, H, W]."""
        x = as_array("x", x)
        expect_shape("x", x, (None, self.embedding_dim))
        expect_rows("x", x)
        surface = run(self.projection, x) * self.energy_scale + self.energy_bias
        return surface.reshape(-1, self.height, self.width) + self.positional_encoding

    __call__ = map_to_surface
