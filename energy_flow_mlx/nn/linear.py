"""The linear layer of the models."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..ops.kernel import as_type
from .precision import weight_in
from .quantised import QuantisedMatrix, quantised_matrix


class Linear(nn.Linear):
    """`mlx.nn.Linear` that computes in the dtype of its input, and whose weight's gradient comes as the weight lies in memory.

    Autodiff differentiates a product with the transposed weight and transposes back: the norms, and then the optimiser, would
    read that gradient across its rows, or copy it first, which for the 1.25 billion weights of the optimized preset took a third of
    the optimiser's own time. In evaluation mode it is `mlx.nn.Linear`, so that a model can be exported (`mx.export_function`).
    """

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., inputs] -> [..., outputs], of the dtype of x."""
        if "bias" not in self:
            return product(self, x)
        weight, bias = weight_in(self.weight, x.dtype, self.training), as_type(self.bias, x.dtype)
        affine: Any = _affine if self.training else _affine_reference
        y: mx.array = affine(x, weight, bias)
        return y

    def dense(self, dtype: mx.Dtype) -> mx.array:
        """The weight [outputs, inputs] in `dtype`; in training its gradient too."""
        return weight_in(self.weight, dtype, self.training)

    def to_quantized(
        self, group_size: int | None = None, bits: int | None = None, mode: str = "affine", quantize_input: bool = False
    ) -> "Linear | QuantisedLinear":
        """The layer with a quantised weight; itself where that is too narrow to gain. See `quantised_matrix`."""
        matrix = quantised_matrix(self.weight, bits, group_size, mode, quantize_input)
        return self if matrix is None else QuantisedLinear(matrix, self.get("bias"))


class QuantisedLinear(nn.Module):
    """`Linear` with a quantised weight, for inference; inputs of any width, where `mlx.nn.QuantizedLinear` wants whole groups."""

    def __init__(self, matrix: QuantisedMatrix, bias: mx.array | None) -> None:
        super().__init__()
        self.matrix = matrix
        if bias is not None:
            self.bias = bias
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., inputs] -> [..., outputs], of the dtype of x."""
        y = self.matrix.product(x)
        return y + as_type(self.bias, x.dtype) if "bias" in self else y

    def dense(self, dtype: mx.Dtype) -> mx.array:
        """The weight [outputs, inputs] in `dtype`."""
        return self.matrix.dense(dtype)


def product(linear: nn.Module, x: mx.array) -> mx.array:
    """x [..., inputs] -> [..., outputs], of the dtype of x, by the layer's weight [outputs, inputs] alone."""
    weight = weight_in(linear.weight, x.dtype, linear.training)
    if not linear.training:
        return x @ weight.T
    function: Any = _product
    y: mx.array = function(x, weight)
    return y


def _affine_reference(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    return mx.addmm(bias, x, weight.T)


@mx.custom_function
def _product(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


@_product.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
    x, weight = primals
    return _gradients(x, weight, cotangent)


@mx.custom_function
def _affine(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    return _affine_reference(x, weight, bias)


@_affine.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
    x, weight, bias = primals
    return *_gradients(x, weight, cotangent), as_type(mx.sum(_rows(cotangent), axis=0), bias.dtype)


def _gradients(x: mx.array, weight: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    return as_type(cotangent @ weight, x.dtype), as_type(_rows(cotangent).T @ _rows(x), weight.dtype)


def _rows(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])
