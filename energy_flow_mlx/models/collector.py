"""OutputCollector: a surface of energies becomes an embedding."""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from ..nn import Dropout, LayerNorm, Linear, run
from .mapper import intermediate_size
from .shapes import as_rows, expect_shape


class OutputCollector(nn.Module):
    """Surfaces [B, S] to embeddings [B, E].

        Linear(S, 2S) GELU LN Dropout(p/2) Linear(2S, M) GELU LN Dropout(p) Linear(M, E)

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
        self.reconstruction = [
            Linear(surface, 2 * surface), nn.GELU(), LayerNorm(2 * surface), Dropout(dropout / 2),
            Linear(2 * surface, middle), nn.GELU(), LayerNorm(middle), Dropout(dropout),
            Linear(middle, embedding_dim),
        ]  # fmt: skip
        # Untrained flows leave energies of a few hundredths; the default bias would drown them before the LayerNorm.
        first = self.reconstruction[0]
        first.weight = mx.random.normal((2 * surface, surface))
        first.bias = mx.zeros((2 * surface,))
        self.position_weights = mx.ones((height, width))  # of the dictionary form alone

    def collect(self, surface: mx.array | Mapping[tuple[int, int], mx.array]) -> mx.array:
        """The embeddings [B, E] of surfaces.

        Args:
            surface: [B, S] or [B, H, W]; or {(x, y): energy [B, 1]}, whose entries are multiplied by
                `position_weights[y, x]` and whose absent cells are 0.
        """
        if isinstance(surface, Mapping):
            surface = self._from_cells(surface)
        return run(self.reconstruction, as_rows("surface", surface, self.width, self.height))

    __call__ = collect

    def _from_cells(self, cells: Mapping[tuple[int, int], mx.array]) -> mx.array:
        if not cells:
            raise ValueError("surface: an empty dictionary came, accepted is at least one {(x, y): energy [B, 1]}")
        batch = next(iter(cells.values())).shape[0]
        for (x, y), energy in cells.items():
            if not (0 <= x < self.width and 0 <= y < self.height):
                raise ValueError(
                    f"surface: cell ({x}, {y}) came, accepted are x in 0..{self.width - 1} and y in 0..{self.height - 1}"
                )
            expect_shape(f"surface[({x}, {y})]", energy, (batch, 1))
        index = mx.array([y * self.width + x for x, y in cells])
        energy = mx.concatenate(list(cells.values()), axis=1) * self.position_weights.reshape(-1)[index]
        return mx.zeros((batch, self.width * self.height)).at[:, index].add(energy)
