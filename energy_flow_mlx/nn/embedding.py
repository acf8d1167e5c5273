"""The table of token embeddings."""

import mlx.core as mx
import mlx.nn as nn

from ..ops.embedding import embedding
from ..ops.kernel import as_type
from .precision import weight_in
from .quantised import QuantisedMatrix, quantised_matrix


class Embedding(nn.Embedding):
    """`mlx.nn.Embedding` with the dtype of its result as an argument, and a row of NaN for an id outside the table."""

    def __call__(self, ids: mx.array, dtype: mx.Dtype = mx.float32) -> mx.array:
        """ids [...] integers -> rows [..., d] in `dtype`; see `ops.embedding`."""
        return embedding(weight_in(self.weight, dtype, self.training), ids)

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine", quantize_input: bool = False
    ) -> "Embedding | QuantisedEmbedding":
        """The table with quantised rows; itself where they are too short to gain. See `quantised_matrix`."""
        matrix = quantised_matrix(self.weight, bits, group_size, mode, quantize_input)
        return self if matrix is None else QuantisedEmbedding(matrix)


class QuantisedEmbedding(nn.Module):
    """`Embedding` with quantised rows; only those that are asked for are made dense."""

    def __init__(self, table: QuantisedMatrix) -> None:
        super().__init__()
        self.table = table

    def __call__(self, ids: mx.array, dtype: mx.Dtype = mx.float32) -> mx.array:
        """As `Embedding`."""
        table = self.table
        entries = table.weight.shape[0]
        codes = table.weight[mx.clip(ids, -entries, entries - 1)]
        scales, biases = embedding(table.scales, ids), embedding(table.biases, ids)  # NaN outside the table
        return as_type(table.decode(codes, scales, biases), dtype)
