"""LayerNorm and the exact GELU behind it."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from . import host
from .differentiable import by_numpy
from .kernel import as_type

EPSILON = 1e-5  # of torch's and MLX's LayerNorm


def norm_gelu(x: mx.array, gamma: mx.array, beta: mx.array) -> mx.array:
    """GELU(LayerNorm(x)), of the dtype of x. On a CPU it runs by NumPy where `ops.host.use_host` says so.

    Args:
        x: [N, d].
        gamma, beta: [d], weight and bias of the LayerNorm.
    """
    if not host.use_host("norm_gelu", None, x, gamma, beta):
        return norm_gelu_reference(x, gamma, beta)
    result: mx.array = _on_host(x, gamma, beta)
    return result


def norm_gelu_reference(x: mx.array, gamma: mx.array, beta: mx.array) -> mx.array:
    """`norm_gelu` in plain MLX: the specification."""
    y: mx.array = nn.gelu(mx.fast.layer_norm(x, gamma, beta, EPSILON))
    return y


def host_forward(x: mx.array, gamma: mx.array, beta: mx.array) -> mx.array:
    """`norm_gelu` by NumPy."""
    result, y = host.new(x.shape)
    inputs, weight, bias = map(host.read, (x, gamma, beta))

    def block(rows: slice) -> None:
        inner = _normalised(inputs[rows])[0] * weight
        inner += bias
        np.multiply(inner, host.normal_integral(inner), out=y[rows])

    host.in_blocks(block, *x.shape)
    return as_type(result, x.dtype)


def host_backward(cotangent: mx.array, x: mx.array, gamma: mx.array, beta: mx.array) -> list[mx.array]:
    """The gradients of `norm_gelu` by NumPy, in the order of its arrays."""
    result, d_x = host.new(x.shape)
    inputs, above, weight, bias = map(host.read, (x, cotangent, gamma, beta))

    def block(rows: slice) -> host.Rows:
        normal, scale = _normalised(inputs[rows])
        inner = normal * weight
        inner += bias
        d = host.gelu_slope(inner, host.normal_integral(inner))
        d *= above[rows]
        of_parameters = np.stack([(d * normal).sum(axis=0), d.sum(axis=0)])
        d *= weight
        d -= _mean(d) + normal * _mean(d * normal)
        np.multiply(d, scale, out=d_x[rows])
        return of_parameters

    of_gamma, of_beta = host.total(host.in_blocks(block, *x.shape), gamma.dtype)
    return [as_type(result, x.dtype), of_gamma, of_beta]


_on_host = by_numpy(host_forward, host_backward)


def _normalised(x: host.Rows) -> tuple[host.Rows, host.Rows]:
    """Rows [N, d] with mean 0 and variance 1, and what they were multiplied by, [N, 1]."""
    centred = x - _mean(x)
    scale = 1 / np.sqrt(_mean(centred * centred) + np.float32(EPSILON))
    centred *= scale
    return centred, scale


def _mean(x: host.Rows) -> host.Rows:
    """Of each row, [N, 1]."""
    mean: host.Rows = x.mean(axis=1, keepdims=True)
    return mean
