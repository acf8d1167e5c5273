"""Matrices of weights with a few bits a number, for inference (`mx.quantize`)."""

import mlx.core as mx
import mlx.nn as nn

from ..ops.kernel import as_type

BITS = (4, 8)  # a number may take
GROUPS = (64, 32)  # columns that share a scale and an offset; the first of them that needs no more padding than the last
_HALF = 16  # bits of a number in float16, which a quantised matrix has to undercut


class QuantisedMatrix(nn.Module):
    """A matrix [rows, columns]; each group of a row's columns is scale * codes + offset.

    Its parameters have the names of `mlx.nn.QuantizedLinear`: weight, uint32 with the codes of 32 / bits columns each, scales and biases,
    the offsets, in the dtype that the matrix had. Rows are padded with zeros to whole groups. They have no gradients.

    Args:
        matrix: [rows, columns].
        bits, group_size: as `quantised_matrix`.
    """

    def __init__(self, matrix: mx.array, bits: int, group_size: int) -> None:
        super().__init__()
        self.columns, self.bits, self.group_size = matrix.shape[1], bits, group_size
        padded = mx.pad(matrix, [(0, 0), (0, -matrix.shape[1] % group_size)])
        self.weight, self.scales, self.biases = mx.quantize(padded, group_size, bits)
        self.freeze()

    def dense(self, dtype: mx.Dtype) -> mx.array:
        """The matrix [rows, columns] in `dtype`."""
        return as_type(self.decode(self.weight, self.scales, self.biases), dtype)

    def decode(self, codes: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        """Rows [..., columns] from their entries in `weight`, `scales` and `biases`."""
        return mx.dequantize(codes, scales, biases, self.group_size, self.bits)[..., : self.columns]

    def product(self, x: mx.array) -> mx.array:
        """x [..., columns] times the transposed matrix: [..., rows], of the dtype of x."""
        x = mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -self.columns % self.group_size)])
        scales, biases = as_type(self.scales, x.dtype), as_type(self.biases, x.dtype)
        return mx.quantized_matmul(x, self.weight, scales, biases, group_size=self.group_size, bits=self.bits)


def quantised_matrix(
    matrix: mx.array,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    quantize_input: bool = False,
) -> QuantisedMatrix | None:
    """The matrix, quantised; None where its rows are so short that it would take more than in float16.

    Args:
        matrix: [rows, columns].
        bits: of a number; None: 4.
        group_size: columns that share a scale and an offset; None: 64, or 32 where that needs less padding.

    Raises:
        ValueError: another mode than affine, inputs to be quantised too, or sizes that `mx.quantize` refuses.
    """
    if mode != "affine":
        raise ValueError(f"mode={mode!r} is not accepted: these layers take 'affine'")
    if quantize_input:
        raise ValueError("quantize_input=True is not accepted: these layers take inputs as they are")
    columns = matrix.shape[1]
    bits = BITS[0] if bits is None else bits
    if group_size is None:
        group_size = next(group for group in GROUPS if -columns % group == -columns % GROUPS[-1])
    padded = columns + -columns % group_size
    stored = padded * bits + padded // group_size * 2 * _HALF
    return QuantisedMatrix(matrix, bits, group_size) if stored < _HALF * columns else None
