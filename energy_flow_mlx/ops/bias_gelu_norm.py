"""Bias, GELU and LayerNorm: what follows a matrix product."""

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .kernel import as_type, call, setting, suited, use_kernel

EPSILON = 1e-5  # of torch's and MLX's LayerNorm
# Rows of up to so many columns stay in the registers of one group. On Metal that is four numbers a thread, and backward twenty: groups
# of 1,024, or many numbers a thread, are more than an Apple GPU may be able to launch. CUDA can, and saves a launch.
MOST_THREADS = {"metal": 512, "cuda": 1024}
MOST_COLUMNS = {"metal": 2048, "cuda": 32 * 1024}
WIDE_GROUP, WIDE_PER = 256, 8  # threads of a part of a wider row, and columns of each
FEW_ROWS = 512


def bias_gelu_norm(
    x: mx.array,
    bias: mx.array,
    gamma: mx.array,
    beta: mx.array,
    *,
    epsilon: float = EPSILON,
    kernels: bool | None = None,
) -> mx.array:
    """LayerNorm(GELU(x + bias)); GELU is the exact one, with erf.

    Args:
        x: [..., d], a matrix product.
        bias: [d], of the product.
        gamma, beta: [d], weight and bias of the LayerNorm.
        epsilon: added to the variance.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.

    Returns:
        [..., d], of the dtype of `x`.
    """
    if not use_kernel("bias_gelu_norm", kernels):
        return bias_gelu_norm_reference(x, bias, gamma, beta, epsilon=epsilon)
    # The parameters stay float32: they are small, and their gradients are sums over all rows.
    parameters = (as_type(parameter, mx.float32) for parameter in (bias, gamma, beta))
    y: mx.array = _with_vjp(epsilon)(x.reshape(-1, x.shape[-1]), *parameters)[0]
    return y.reshape(x.shape)


def bias_gelu_norm_reference(
    x: mx.array, bias: mx.array, gamma: mx.array, beta: mx.array, *, epsilon: float = EPSILON
) -> mx.array:
    """`bias_gelu_norm` in plain MLX: the specification."""
    bias, gamma, beta = (parameter.astype(x.dtype) for parameter in (bias, gamma, beta))
    return mx.fast.layer_norm(nn.gelu(x + bias), gamma, beta, epsilon)


@functools.cache
def _with_vjp(epsilon: float) -> Any:
    """The kernels as a differentiable function of its arrays."""

    @mx.custom_function
    def normalised(*arrays: mx.array) -> list[mx.array]:
        return forward(*arrays, epsilon=epsilon)

    @normalised.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        x, bias, gamma, beta = primals
        return backward(x, bias, gamma, beta, outputs[1], cotangents[0])

    return normalised


def forward(x: mx.array, bias: mx.array, gamma: mx.array, beta: mx.array, *, epsilon: float) -> list[mx.array]:
    """The forward kernels: y [N, d] and, for backward, mean and 1 / deviation of each row [N, 2] float32."""
    rows, size = x.shape
    inputs = {"x": x, "bias": bias, "gamma": gamma, "beta": beta, "settings": setting(epsilon)}
    outputs = {"y": (x.shape, x.dtype), "statistics": ((rows, 2), mx.float32)}
    if size <= suited(MOST_COLUMNS):
        return _launch("forward", inputs, outputs, groups=rows, template=_narrow(x))
    template, cut = _wide(x)
    (parts,) = _launch("moments", {"x": x, "bias": bias}, {"parts": cut}, groups=rows * cut[0][1], template=template)
    return _launch("apply", inputs | {"parts": parts}, outputs, groups=rows * cut[0][1], template=template)


def backward(
    x: mx.array, bias: mx.array, gamma: mx.array, beta: mx.array, statistics: mx.array, cotangent: mx.array
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """The gradients of x, bias, gamma and beta. The GELU is computed anew."""
    rows, size = x.shape
    # With few rows threadgroups are rare and walk few of them; with many the sums over a block would be many.
    walked = 4 if rows <= FEW_ROWS else 32
    blocks = -(-rows // walked)
    inputs = {
        "x": x,
        "bias": bias,
        "gamma": gamma,
        "statistics": statistics,
        "cotangent": as_type(cotangent, x.dtype),
    }
    outputs = {"d_x": (x.shape, x.dtype), "d_parameters": ((blocks, 3, size), mx.float32)}
    if size <= suited(MOST_COLUMNS):
        d_x, sums = _launch("backward", inputs, outputs, groups=blocks, template=_narrow(x) | {"ROWS": walked})
    else:
        template, cut = _wide(x)
        (parts,) = _launch("products", inputs, {"parts": cut}, groups=rows * cut[0][1], template=template)
        of_columns = {"T": x.dtype, "D": size, "GROUP": WIDE_GROUP, "PARTS": cut[0][1], "ROWS": walked}
        groups = blocks * -(-size // WIDE_GROUP)
        d_x, sums = _launch("columns", inputs | {"parts": parts}, outputs, groups=groups, template=of_columns)
    d_bias, d_gamma, d_beta = (row.reshape(-1) for row in mx.split(mx.sum(sums, axis=0), 3))  # indexing would gather
    return d_x, d_bias, d_gamma, d_beta


def _launch(
    body: str,
    inputs: dict[str, mx.array],
    outputs: dict[str, tuple[tuple[int, ...], mx.Dtype]],
    *,
    groups: int,
    template: dict[str, Any],
) -> list[mx.array]:
    group = template["GROUP"]
    return call("bias_gelu_norm", body, inputs, outputs, threads=groups * group, group=group, template=template)


def _narrow(x: mx.array) -> dict[str, Any]:
    """The template of kernels that keep a row in registers: four columns a thread where threads suffice, in whole SIMD-groups."""
    group = min(suited(MOST_THREADS), -(-x.shape[1] // 128) * 32)
    return {"T": x.dtype, "D": x.shape[1], "GROUP": group, "PER": -(-x.shape[1] // group)}


def _wide(x: mx.array) -> tuple[dict[str, Any], tuple[tuple[int, int, int], mx.Dtype]]:
    """The template of kernels that have a part of a row, and shape [N, PARTS, 2] and dtype of what they leave."""
    parts = -(-x.shape[1] // (WIDE_GROUP * WIDE_PER))
    template = {"T": x.dtype, "D": x.shape[1], "GROUP": WIDE_GROUP, "PER": WIDE_PER, "PARTS": parts}
    return template, ((x.shape[0], parts, 2), mx.float32)
