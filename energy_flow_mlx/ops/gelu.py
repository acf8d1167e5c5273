"""The exact GELU, x Phi(x) with the normal distribution's integral Phi."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from . import host
from .differentiable import by_numpy
from .kernel import as_type


def gelu(x: mx.array, bias: mx.array | None = None) -> mx.array:
    """GELU(x + bias), of the dtype of x.

    On a CPU it runs by NumPy where `ops.host.use_host` says so.

    Args:
        x: [..., d].
        bias: [d], or None.
    """
    arrays = (x,) if bias is None else (x, bias)
    if not host.use_host("gelu", None, *arrays):
        return gelu_reference(*arrays)
    result: mx.array = _on_host(*arrays)
    return result


def gelu_reference(x: mx.array, bias: mx.array | None = None) -> mx.array:
    """`gelu` in plain MLX: the specification."""
    y: mx.array = nn.gelu(x if bias is None else x + as_type(bias, x.dtype))
    return y


def host_forward(x: mx.array, bias: mx.array | None = None) -> mx.array:
    """`gelu` by NumPy."""
    result, y = host.new(x.shape)
    inputs, outputs = _rows(host.read(x)), _rows(y)
    own = None if bias is None else host.read(bias)

    def block(rows: slice) -> None:
        inner = inputs[rows] if own is None else inputs[rows] + own
        np.multiply(inner, host.normal_integral(inner), out=outputs[rows])

    host.in_blocks(block, *inputs.shape)
    return as_type(result, x.dtype)


def host_backward(cotangent: mx.array, x: mx.array, bias: mx.array | None = None) -> list[mx.array]:
    """The gradients of `gelu` by NumPy, in the order of its arrays. Phi is computed anew."""
    result, d = host.new(x.shape)
    inputs, above, outputs = _rows(host.read(x)), _rows(host.read(cotangent)), _rows(d)
    own = None if bias is None else host.read(bias)

    def block(rows: slice) -> host.Rows | None:
        inner = inputs[rows] if own is None else inputs[rows] + own
        np.multiply(above[rows], host.gelu_slope(inner, host.normal_integral(inner)), out=outputs[rows])
        return None if own is None else outputs[rows].sum(axis=0)

    sums = host.in_blocks(block, *inputs.shape)
    gradients = [as_type(result, x.dtype)]
    return gradients if bias is None else [*gradients, host.total(sums, bias.dtype)]


_on_host = by_numpy(host_forward, host_backward)


def _rows(x: host.Rows) -> host.Rows:
    """[..., d] as [N, d]."""
    return x.reshape(-1, x.shape[-1])
