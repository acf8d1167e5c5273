"""One step of AdamW on many tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from .kernel import call, filler, use_kernel, whole

TENSORS = 3  # in one launch: with what they share 26 buffers, and a Metal kernel has at most 31


class AdamTensor(NamedTuple):
    """A tensor before the step, all of one shape; first and second are Adam's moments m and v. float32, but for the gradient, which
    may be in any floating-point dtype."""

    parameter: mx.array
    gradient: mx.array
    first: mx.array
    second: mx.array


class Stepped(NamedTuple):
    """A tensor after the step."""

    parameter: mx.array
    first: mx.array
    second: mx.array


class AdamStep(NamedTuple):
    """What all tensors share in one step.

    settings [7] float32: rate, weight decay, beta1, beta2, eps, 1 - beta1^t, 1 - beta2^t; factors [P] float32: what the gradient
    of each tensor is multiplied by; go [1] bool: False leaves parameters and moments as they are.
    """

    settings: mx.array
    factors: mx.array
    go: mx.array


def adamw(tensors: Sequence[AdamTensor], step: AdamStep, *, kernels: bool | None = None) -> list[Stepped]:
    """AdamW with bias correction and decoupled weight decay (Loshchilov and Hutter, 2019; torch.optim.AdamW).

        g = factor * gradient;  m' = beta1 m + (1 - beta1) g;  v' = beta2 v + (1 - beta2) g^2
        p' = p (1 - rate * decay) - rate / (1 - beta1^t) * m' / (sqrt(v' / (1 - beta2^t)) + eps)

    Args:
        tensors: P of them, in the order of `step.factors`.
        step: what they share.
        kernels: True or False forces the kernel or the plain graph.

    Raises:
        ValueError: there is not one factor for each tensor.
    """
    if step.factors.shape != (len(tensors),):
        raise ValueError(
            f"factors: shape {step.factors.shape} came with {len(tensors)} tensors, accepted is one for each"
        )
    if not use_kernel("adamw", kernels):
        return [adamw_reference(tensor, step, index) for index, tensor in enumerate(tensors)]
    new: list[Stepped] = []
    for start in range(0, len(tensors), TENSORS):
        new += _launch(tensors[start : start + TENSORS], step, start)
    return new


def adamw_reference(tensor: AdamTensor, step: AdamStep, index: int) -> Stepped:
    """`adamw` of one tensor, which has factor `index`, in plain MLX: the specification."""
    parameter, gradient, first, second = tensor
    rate, decay, beta1, beta2, eps, correction1, correction2 = step.settings
    g = gradient * step.factors[index]
    m = beta1 * first + (1.0 - beta1) * g
    v = beta2 * second + (1.0 - beta2) * g * g
    p = parameter * (1.0 - rate * decay) - rate / correction1 * m / (mx.sqrt(v / correction2) + eps)
    return Stepped(
        mx.where(step.go, p, parameter),
        mx.where(step.go, m, first),
        mx.where(step.go, v, second),
    )


def _launch(tensors: Sequence[AdamTensor], step: AdamStep, start: int) -> list[Stepped]:
    """The step on up to TENSORS tensors, the first of which has factor `start`."""
    missing = TENSORS - len(tensors)
    given = [*tensors, *[AdamTensor(*[filler()] * 4)] * missing]
    inputs, outputs = {}, {}
    for position, tensor in enumerate(given):
        inputs.update({f"{name}{position}": array for name, array in tensor._asdict().items()})
        outputs.update({f"next_{name}{position}": (tensor.parameter.shape, mx.float32) for name in Stepped._fields})
    sizes = [tensor.parameter.size for tensor in given]
    inputs.update(step._asdict())
    inputs["index"] = whole(*range(start, start + len(tensors)), *[start] * missing)
    inputs["sizes"] = whole(*sizes)
    new = call("adamw", "step", inputs, outputs, threads=sum(sizes))
    return [Stepped(*new[3 * position : 3 * position + 3]) for position in range(len(tensors))]
