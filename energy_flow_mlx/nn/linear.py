"""The linear layer of the models."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn


class Linear(nn.Linear):
    """`mlx.nn.Linear`, whose weight's gradient comes as the weight lies in memory.

    Autodiff differentiates a product with the transposed weight and transposes back: the norms, and then the optimiser, would
    read that gradient across its rows or copy it first, which for the 400 million weights of a layer of the optimized preset is
    as much work as the optimiser's own.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., inputs] -> [..., outputs]."""
        if "bias" not in self:
            return product(x, self.weight)
        affine: Any = _affine
        y: mx.array = affine(x, self.weight, self.bias)
        return y


def product(x: mx.array, weight: mx.array) -> mx.array:
    """x [..., inputs], weight [outputs, inputs] -> x weight^T [..., outputs]."""
    function: Any = _product
    y: mx.array = function(x, weight)
    return y


@mx.custom_function
def _product(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


@_product.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
    x, weight = primals
    return _gradients(x, weight, cotangent)


@mx.custom_function
def _affine(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
    return mx.addmm(bias, x, weight.T)


@_affine.vjp
def _(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
    x, weight, _ = primals
    return *_gradients(x, weight, cotangent), mx.sum(_rows(cotangent), axis=0)


def _gradients(x: mx.array, weight: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    return cotangent @ weight, _rows(cotangent).T @ _rows(x)


def _rows(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])
