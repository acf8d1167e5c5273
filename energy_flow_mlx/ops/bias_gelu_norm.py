"""Bias, GELU and LayerNorm: what follows a matrix product."""

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .kernel import as_type, call, setting, use_kernel

EPSILON = 1e-5  # of torch's and MLX's LayerNorm
FEW_ROWS = 512


def bias_gelu_norm(
    x: mx.array,
    bias: mx.array,
    gamma: mx.array,
    beta: mx.array,
    *,
    norm_first: bool = False,
    epsilon: float = EPSILON,
    kernels: bool | None = None,
) -> mx.array:
    """LayerNorm(GELU(x + bias)), or GELU(LayerNorm(x + bias)); GELU is the exact one, with erf.

    Args:
        x: [..., d], a matrix product.
        bias: [d], of the product.
        gamma, beta: [d], weight and bias of the LayerNorm.
        norm_first: LayerNorm before GELU.
        epsilon: added to the variance.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.

    Returns:
        [..., d], of the dtype of `x`.
    """
    if not use_kernel("bias_gelu_norm", kernels):
        return bias_gelu_norm_reference(x, bias, gamma, beta, norm_first=norm_first, epsilon=epsilon)
    # The parameters stay float32: they are small, and their gradients are sums over all rows.
    parameters = (as_type(parameter, mx.float32) for parameter in (bias, gamma, beta))
    y: mx.array = _with_vjp(norm_first, epsilon)(x.reshape(-1, x.shape[-1]), *parameters)[0]
    return y.reshape(x.shape)


def bias_gelu_norm_reference(
    x: mx.array,
    bias: mx.array,
    gamma: mx.array,
    beta: mx.array,
    *,
    norm_first: bool = False,
    epsilon: float = EPSILON,
) -> mx.array:
    """`bias_gelu_norm` in plain MLX: the specification."""
    bias, gamma, beta = (parameter.astype(x.dtype) for parameter in (bias, gamma, beta))
    x = x + bias
    if norm_first:
        return nn.gelu(mx.fast.layer_norm(x, gamma, beta, epsilon))
    return mx.fast.layer_norm(nn.gelu(x), gamma, beta, epsilon)


@functools.cache
def _with_vjp(norm_first: bool, epsilon: float) -> Any:
    """The kernel as a differentiable function of its arrays."""

    @mx.custom_function
    def normalised(*arrays: mx.array) -> list[mx.array]:
        return forward(*arrays, norm_first=norm_first, epsilon=epsilon)

    @normalised.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        x, bias, gamma, beta = primals
        return backward(x, bias, gamma, beta, outputs[1], cotangents[0], norm_first=norm_first)

    return normalised


def forward(
    x: mx.array, bias: mx.array, gamma: mx.array, beta: mx.array, *, norm_first: bool, epsilon: float
) -> list[mx.array]:
    """The forward kernel: y [N, d] and, for the backward kernel, mean and 1 / deviation of each row [N, 2] float32."""
    rows, size = x.shape
    group = _group(size)
    inputs = {"x": x, "bias": bias, "gamma": gamma, "beta": beta, "settings": setting(epsilon)}
    outputs = {"y": (x.shape, x.dtype), "statistics": ((rows, 2), mx.float32)}
    template = {"T": x.dtype, "D": size, "GROUP": group, "NORM_FIRST": norm_first}
    return call("bias_gelu_norm", "forward", inputs, outputs, threads=rows * group, group=group, template=template)


def backward(
    x: mx.array,
    bias: mx.array,
    gamma: mx.array,
    beta: mx.array,
    statistics: mx.array,
    cotangent: mx.array,
    *,
    norm_first: bool,
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The gradients of x, bias, gamma and beta. The GELU is computed anew."""
    rows, size = x.shape
    group = _group(size)
    # With few rows threadgroups are rare and walk few of them; with many the sums over a block would be many.
    walked = 4 if rows <= FEW_ROWS else 32
    blocks = -(-rows // walked)
    inputs = {
        "x": x,
        "bias": bias,
        "gamma": gamma,
        "beta": beta,
        "statistics": statistics,
        "cotangent": cotangent.astype(x.dtype),
    }
    outputs = {"d_x": (x.shape, x.dtype), "d_parameters": ((blocks, 3, size), mx.float32)}
    template = {"T": x.dtype, "D": size, "GROUP": group, "ROWS": walked, "NORM_FIRST": norm_first}
    d_x, sums = call(
        "bias_gelu_norm", "backward", inputs, outputs, threads=blocks * group, group=group, template=template
    )
    d_bias, d_gamma, d_beta = (row.reshape(-1) for row in mx.split(mx.sum(sums, axis=0), 3))  # indexing would gather
    return d_x, d_bias, d_gamma, d_beta


def _group(size: int) -> int:
    """Threads for one row: about four columns a thread, in whole SIMD-groups."""
    return min(1024, -(-size // 128) * 32)
