"""The carrier's two heads, after their first products."""

from typing import Any

import mlx.core as mx

from .differentiable import Differentiable
from .gelu import gelu, gelu_reference
from .host import by_host
from .kernel import call, suited, use_kernel

# Rows of a SIMD-group of the forward kernel, which reads the weights once for all of them.
FORWARD_ROWS = {"metal": 4, "cuda": 1}
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
    """Energy and displacement from the first products of both heads.

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
        together = kernels is None and by_host("heads")
        return _side_by_side(inner, *weights, scale) if together else heads_reference(inner, *weights, scale)
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
    a = gelu_reference(inner.astype(mx.float32), bias)
    energy = mx.tanh(a[:, :columns] @ energy_weight[:, None] + out_bias[:1])
    return energy, mx.stop_gradient(scale) * (a[:, columns:] @ displacement_weight.T + out_bias[1:])


def _side_by_side(
    inner: mx.array,
    bias: mx.array,
    energy_weight: mx.array,
    displacement_weight: mx.array,
    out_bias: mx.array,
    scale: mx.array,
) -> tuple[mx.array, mx.array]:
    """`heads_reference` on a Linux CPU, with one product for both heads, so that neither pass cuts [N, A + M]."""
    left = mx.pad(energy_weight[None], [(0, 3), (0, displacement_weight.shape[1])])
    weight = left + mx.pad(displacement_weight, [(1, 0), (energy_weight.shape[0], 0)])
    out = mx.addmm(out_bias, gelu(inner.astype(mx.float32), bias), weight.T)
    return mx.tanh(out[:, :1]), mx.stop_gradient(scale) * out[:, 1:]


def forward(
    inner: mx.array,
    bias: mx.array,
    energy_weight: mx.array,
    displacement_weight: mx.array,
    out_bias: mx.array,
    scale: mx.array,
) -> list[mx.array]:
    """The forward kernel: energy [N, 1] and displacement [N, 3]."""
    rows = inner.shape[0]
    inputs = {
        "inner": inner, "bias": bias, "energy_weight": energy_weight, "displacement_weight": displacement_weight,
        "out_bias": out_bias, "scale": scale,
    }  # fmt: skip
    outputs = {"energy": ((rows, 1), mx.float32), "displacement": ((rows, 3), mx.float32)}
    own = suited(FORWARD_ROWS)
    template = {**_template(inner, energy_weight), "ROWS": own}
    return call("heads", "forward", inputs, outputs, threads=32 * -(-rows // own), template=template)


def backward(
    d_energy: mx.array,
    d_displacement: mx.array,
    energy: mx.array,
    inner: mx.array,
    bias: mx.array,
    energy_weight: mx.array,
    displacement_weight: mx.array,
    scale: mx.array,
    running: tuple[mx.array, mx.array] | None = None,
) -> tuple[mx.array, tuple[mx.array, mx.array]]:
    """The gradient of `inner`, and sums for `gradients_of_weights`, added to those of other steps in `running`.

    `energy` is what the forward kernel gave.
    """
    rows, columns = inner.shape
    blocks = -(-rows // ROWS)
    sums, out_sums = running or (bias, scale)
    inputs = {
        "inner": inner, "bias": bias, "energy_weight": energy_weight, "displacement_weight": displacement_weight,
        "scale": scale, "energy": energy, "d_energy": d_energy, "d_displacement": d_displacement,
        "running": sums, "running_out": out_sums,
    }  # fmt: skip
    outputs = {
        "d_inner": (inner.shape, inner.dtype),
        "sums": ((blocks, 4, columns), mx.float32),
        "out_sums": ((blocks, 4), mx.float32),
    }
    template = {**_template(inner, energy_weight), "ROWS": ROWS, "RUNNING": running is not None}
    d_inner, sums, out_sums = call(
        "heads", "backward", inputs, outputs, threads=blocks * columns, group=128, template=template
    )
    return d_inner, (sums, out_sums)


def gradients_of_weights(sums: tuple[mx.array, mx.array], own: int) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """Gradients of bias, energy_weight [own], displacement_weight and out_bias from the sums of `backward`."""
    total = mx.sum(sums[0], axis=0)  # [4, A + M]
    # Slices, where an index would gather.
    return total[:1].reshape(-1), total[1:2, :own].reshape(-1), total[1:, own:], mx.sum(sums[1], axis=0)


@Differentiable
def _heads(*arrays: mx.array) -> list[mx.array]:
    return forward(*arrays)


@_heads.vjp
def _gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
    inner, bias, energy_weight, displacement_weight, _, scale = primals
    d_inner, sums = backward(
        cotangents[0], cotangents[1], outputs[0], inner, bias, energy_weight, displacement_weight, scale
    )
    return d_inner, *gradients_of_weights(sums, energy_weight.size), mx.zeros_like(scale)


def _template(inner: mx.array, energy_weight: mx.array) -> dict[str, Any]:
    own = energy_weight.size
    return {"T": inner.dtype, "A": own, "M": inner.shape[1] - own}
