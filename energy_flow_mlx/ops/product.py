"""The product with a transposed weight, before an op by NumPy."""

import mlx.core as mx
import numpy as np

from .differentiable import by_numpy


def product_on_host(x: mx.array, weight: mx.array) -> mx.array:
    """x [N, D] @ weight [M, D]^T by MLX, float32, whose gradients are computed as soon as they are known.

    The backward pass of an op by NumPy waits for the gradients that it needs alone. Autodiff would put off the products for the weights'
    gradients to the end, and keep for each step what they multiply.
    """
    result: mx.array = _product(x, weight)
    return result


def _forward(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


def _backward(cotangent: mx.array, x: mx.array, weight: mx.array) -> list[mx.array]:
    # Copied, because the results of MLX's operations keep their inputs while it differentiates.
    return [mx.array(np.array(gradient, copy=False)) for gradient in (cotangent @ weight, cotangent.T @ x)]


_product = by_numpy(_forward, _backward)
