"""One step of AdamW on one tensor."""

import functools
from typing import NamedTuple

import mlx.core as mx

from .kernel import call, use_kernel


class AdamStep(NamedTuple):
    """What all tensors share in one step.

    settings [7] float32: rate, weight decay, beta1, beta2, eps, 1 - beta1^t, 1 - beta2^t; factors [P] float32: what the gradient
    of each tensor is multiplied by; go [1] bool: False leaves parameters and moments as they are.
    """

    settings: mx.array
    factors: mx.array
    go: mx.array


def adamw(
    parameter: mx.array,
    gradient: mx.array,
    first: mx.array,
    second: mx.array,
    step: AdamStep,
    index: int,
    *,
    kernels: bool | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """AdamW with bias correction and decoupled weight decay (Loshchilov and Hutter, 2019; torch.optim.AdamW).

        g = factor * gradient;  m' = beta1 m + (1 - beta1) g;  v' = beta2 v + (1 - beta2) g^2
        p' = p (1 - rate * decay) - rate / (1 - beta1^t) * m' / (sqrt(v' / (1 - beta2^t)) + eps)

    Args:
        parameter, gradient, first, second: of one shape; first and second are m and v.
        step: what all tensors share.
        index: which of `step.factors` is this tensor's.
        kernels: True or False forces the kernel or the plain graph.

    Returns:
        Parameter, first and second after the step.
    """
    if not use_kernel("adamw", kernels):
        return adamw_reference(parameter, gradient, first, second, step, index)
    inputs = {
        "parameter": parameter,
        "gradient": gradient.astype(mx.float32),
        "first": first,
        "second": second,
        **step._asdict(),
        "index": _whole(index),
        "size": _whole(parameter.size),
    }
    outputs = {name: (parameter.shape, mx.float32) for name in ("next_parameter", "next_first", "next_second")}
    new = call("adamw", "step", inputs, outputs, threads=parameter.size)
    return new[0], new[1], new[2]


def adamw_reference(
    parameter: mx.array, gradient: mx.array, first: mx.array, second: mx.array, step: AdamStep, index: int
) -> tuple[mx.array, mx.array, mx.array]:
    """`adamw` in plain MLX: the specification."""
    rate, decay, beta1, beta2, eps, correction1, correction2 = step.settings
    g = gradient * step.factors[index]
    m = beta1 * first + (1.0 - beta1) * g
    v = beta2 * second + (1.0 - beta2) * g * g
    p = parameter * (1.0 - rate * decay) - rate / correction1 * m / (mx.sqrt(v / correction2) + eps)
    return (
        mx.where(step.go, p, parameter),
        mx.where(step.go, m, first),
        mx.where(step.go, v, second),
    )


@functools.cache
def _whole(number: int) -> mx.array:
    return mx.array([number], dtype=mx.int32)
