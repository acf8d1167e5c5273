"""The carrier's two heads, after their first products."""

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .kernel import call, use_kernel

ROWS = 32  # rows a thread of the backward kernel walks, and sums the weights' gradients over


def heads(
    inner: mx.array,
    bias: mx.array,
    energy_weight: mx.array,
    displacement_weight: mx.array,
    out_bias: mx.array,
    scale: mx.array,
    *,
    kernels: bool | None = None,
) -> tuple[mx.array, mx.array]:
    """Energy and displacement from the first products of both heads (pytorch_energy_flow, section 2).

        a = GELU(inner + bias);  energy = tanh(a[:, :A] . energy_weight + out_bias[0])
        displacement = scale * (a[:, A:] . displacement_weight + out_bias[1:])

    Args:
        inner: [N, A + M], A columns of the energy head, then M of the displacement head.
        bias: [A + M].
        energy_weight: [A].
        displacement_weight: [3, M].
        out_bias: [4].
        scale: [1], the factor on displacements; has no gradient.
        kernels: True or False forces the kernel or the plain graph.

    Returns:
        energy [N, 1] and displacement [N, 3], float32.
    """
    weights = (bias, energy_weight, displacement_weight, out_bias)
    if not use_kernel("heads", kernels):
        return heads_reference(inner, *weights, scale)
    floats = [weight.astype(mx.float32) for weight in weights]
    run: Any = _heads
    energy, displacement = run(inner, *floats, scale)
    return energy, displacement


def heads_reference(
    inner: mx.array,
    bias: mx.array,
    energy_weight: mx.array,
    displacement_weight: mx.array,
    out_bias: mx.array,
    scale: mx.array,
) -> tuple[mx.array, mx.array]:
    """`heads` in plain MLX: the specification."""
    columns = energy_weight.shape[0]
    a = nn.gelu(inner.astype(mx.float32) + bias)
    energy = mx.tanh(a[:, :columns] @ energy_weight[:, None] + out_bias[:1])
    return energy, mx.stop_gradient(scale) * (a[:, columns:] @ displacement_weight.T + out_bias[1:])


@mx.custom_function
def _heads(
    inner: mx.array,
    bias: mx.array,
    energy_weight: mx.array,
    displacement_weight: mx.array,
    out_bias: mx.array,
    scale: mx.array,
) -> list[mx.array]:
    rows = inner.shape[0]
    arrays = (inner, bias, energy_weight, displacement_weight, out_bias, scale)
    outputs = {"energy": ((rows, 1), mx.float32), "displacement": ((rows, 3), mx.float32)}
    template = _template(inner, energy_weight)
    return call("heads", "forward", dict(zip(_NAMES, arrays, strict=True)), outputs, threads=32 * rows, template=template)


@_heads.vjp
def _gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
    inner, _, energy_weight, _, _, scale = primals
    rows, columns = inner.shape
    own = energy_weight.shape[0]
    blocks = -(-rows // ROWS)
    inputs = dict(zip(_NAMES, primals, strict=True))
    del inputs["out_bias"]
    inputs |= {"energy": outputs[0], "d_energy": cotangents[0], "d_displacement": cotangents[1]}
    results = {
        "d_inner": (inner.shape, inner.dtype),
        "sums": ((blocks, 4, columns), mx.float32),
        "out_sums": ((blocks, 4), mx.float32),
    }
    template = {**_template(inner, energy_weight), "ROWS": ROWS}
    d_inner, sums, out_sums = call(
        "heads", "backward", inputs, results, threads=blocks * columns, group=128, template=template
    )
    total = mx.sum(sums, axis=0)  # [4, A + M]
    return d_inner, total[0], total[1, :own], total[1:, own:], mx.sum(out_sums, axis=0), mx.zeros_like(scale)


_NAMES = ("inner", "bias", "energy_weight", "displacement_weight", "out_bias", "scale")


@functools.cache
def _sizes(dtype: mx.Dtype, own: int, columns: int) -> dict[str, Any]:
    return {"T": dtype, "A": own, "M": columns - own}


def _template(inner: mx.array, energy_weight: mx.array) -> dict[str, Any]:
    return _sizes(inner.dtype, energy_weight.shape[0], inner.shape[1])
