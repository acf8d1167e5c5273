"""The mean over the tokens of a text."""

import functools
from typing import Any

import mlx.core as mx

from .kernel import call, use_kernel

GROUP = 256
COLUMNS = 32  # of one row, for which a threadgroup of the forward kernel works


def masked_mean(x: mx.array, mask: mx.array, *, kernels: bool | None = None) -> mx.array:
    """The mean of each text over its tokens.

    Args:
        x: [B, T, d]. What stands at masked tokens is not read, not even a NaN.
        mask: [B, T], non-zero at tokens.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.

    Returns:
        [B, d], of the dtype of `x`; 0 for a row without tokens.
    """
    if not use_kernel("masked_mean", kernels):
        return masked_mean_reference(x, mask)
    mean: mx.array = _with_vjp()(x, _tokens(mask))[0]
    return mean


def masked_mean_reference(x: mx.array, mask: mx.array) -> mx.array:
    """`masked_mean` in plain MLX: the specification."""
    token = _tokens(mask)[..., None]  # [B, T, 1]
    count = mx.maximum(mx.sum(token, axis=1), 1).astype(x.dtype)
    return mx.sum(mx.where(token, x, 0), axis=1) / count


def _tokens(mask: mx.array) -> mx.array:
    """The mask as booleans."""
    mask = mx.stop_gradient(mask)
    return mask if mask.dtype == mx.bool_ else mask != 0


@functools.cache
def _with_vjp() -> Any:
    @mx.custom_function
    def mean(x: mx.array, mask: mx.array) -> list[mx.array]:
        return forward(x, mask)

    @mean.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        x, mask = primals
        return backward(x, mask, cotangents[0], outputs[1]), mx.zeros_like(mask)

    return mean


def forward(x: mx.array, mask: mx.array) -> list[mx.array]:
    """The forward kernel: mean [B, d] and, for the backward kernel, tokens of each row [B] float32, at least 1."""
    batch, _, size = x.shape
    outputs = {"mean": ((batch, size), x.dtype), "count": ((batch,), mx.float32)}
    threads = batch * -(-size // COLUMNS) * GROUP
    template = {"T": x.dtype, "D": size}
    return call(
        "masked_mean", "forward", {"x": x, "mask": mask}, outputs, threads=threads, group=GROUP, template=template
    )


def backward(x: mx.array, mask: mx.array, cotangent: mx.array, count: mx.array) -> mx.array:
    """The gradient of x."""
    inputs = {"mask": mask, "cotangent": cotangent.astype(x.dtype), "count": count}
    outputs = {"d_x": (x.shape, x.dtype)}
    template = {"T": x.dtype, "D": x.shape[-1]}
    return call("masked_mean", "backward", inputs, outputs, threads=x.size, group=GROUP, template=template)[0]
