"""One step of AdamW on many tensors."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from . import host
from .kernel import call, filler, use_kernel, whole

SMALL = 2**15  # numbers; smaller tensors take one step together in the plain graph
TENSORS = 3  # in one launch: with what they share 27 buffers, and a Metal kernel has at most 31


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
    of each tensor is multiplied by; go [1] bool: False leaves parameters and moments as they are; rates [P] float32: what the rate
    is multiplied by for each tensor.
    """

    settings: mx.array
    factors: mx.array
    go: mx.array
    rates: mx.array


def adamw(tensors: Sequence[AdamTensor], step: AdamStep, *, kernels: bool | None = None) -> list[Stepped]:
    """AdamW with bias correction and decoupled weight decay (Loshchilov and Hutter, 2019; torch.optim.AdamW).

        g = factor * gradient;  m' = beta1 m + (1 - beta1) g;  v' = beta2 v + (1 - beta2) g^2
        rate' = rate * rates;  p' = p (1 - rate' * decay) - rate' / (1 - beta1^t) * m' / (sqrt(v' / (1 - beta2^t)) + eps)

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
        return _joined(tensors, step, host.use_host("adamw", kernels, tensors, step))
    new: list[Stepped] = []
    for start in range(0, len(tensors), TENSORS):
        new += _launch(tensors[start : start + TENSORS], step, start)
    return new


def adamw_reference(tensor: AdamTensor, step: AdamStep, index: int) -> Stepped:
    """`adamw` of one tensor, which has factor `index`, in plain MLX: the specification."""
    scaled = tensor._replace(gradient=tensor.gradient * step.factors[index])
    return _update(scaled, list(mx.split(step.settings, 7)), step.go, step.rates[index])


def _update(tensor: AdamTensor, settings: Sequence[mx.array], go: mx.array, factor: mx.array) -> Stepped:
    """One step of a tensor whose gradient is multiplied by its factor already; settings: seven arrays [1]; factor: of the rate, for
    all of the tensor or for each of its numbers."""
    rate, decay, beta1, beta2, eps, correction1, correction2 = settings
    rate = go * rate * factor
    # A gradient that is called off may be NaN, which no factor of 0 stops.
    g = mx.where(go, tensor.gradient, 0.0)
    m = tensor.first + go * (1.0 - beta1) * (g - tensor.first)
    v = tensor.second + go * (1.0 - beta2) * (g * g - tensor.second)
    root = mx.sqrt(correction2)
    p = tensor.parameter * (1.0 - rate * decay) - (rate * root / correction1) * (m / (mx.sqrt(v) + eps * root))
    return Stepped(p, m, v)


def _joined(tensors: Sequence[AdamTensor], step: AdamStep, on_host: bool) -> list[Stepped]:
    """The plain graph for all tensors, or, `on_host`, for small ones alone. Small ones are joined into one: an operation costs about 10 us
    on a CPU, whatever its size."""
    settings, factors, rates = (list(mx.split(x, x.size)) for x in (step.settings, step.factors, step.rates))
    scaled = [tensor._replace(gradient=tensor.gradient * factor) for tensor, factor in zip(tensors, factors, strict=True)]
    small = [index for index, tensor in enumerate(scaled) if tensor.parameter.size < SMALL]
    large = [index for index in range(len(tensors)) if index not in small]
    if on_host:
        new = {index: host_update(tensors[index], step, index) for index in large}
    else:
        new = {index: _update(scaled[index], settings, step.go, rates[index]) for index in large}
    if small:
        columns = zip(*(scaled[index] for index in small), strict=True)
        joined = AdamTensor(*(mx.concatenate([array.reshape(-1) for array in column]) for column in columns))
        sizes = [scaled[index].parameter.size for index in small]
        own_rates = mx.concatenate([mx.broadcast_to(rates[index], (size,)) for index, size in zip(small, sizes, strict=True)])
        updated = _update(joined, settings, step.go, own_rates)
        parts = zip(*(mx.split(array, np.cumsum(sizes)[:-1].tolist()) for array in updated), strict=True)
        for index, part in zip(small, parts, strict=True):
            shape = scaled[index].parameter.shape
            new[index] = Stepped(*(array.reshape(shape) for array in part))
    return [new[index] for index in range(len(tensors))]


def host_update(tensor: AdamTensor, step: AdamStep, index: int) -> Stepped:
    """`adamw_reference` by NumPy."""
    if not step.go.item():
        return Stepped(tensor.parameter, tensor.first, tensor.second)
    rate, decay, beta1, beta2, eps, correction1, correction2 = host.read(step.settings).tolist()
    factor, rate = host.read(step.factors)[index], rate * host.read(step.rates)[index]
    root = correction2**0.5
    before = [host.read(array).reshape(-1) for array in tensor]
    new, after = zip(*(host.new(tensor.parameter.shape) for _ in Stepped._fields), strict=True)
    flat = [array.reshape(-1) for array in after]

    def block(part: slice) -> None:
        parameter, gradient, first, second = (array[part] for array in before)
        p, m, v = (array[part] for array in flat)
        g = gradient * factor
        np.subtract(g, first, out=m)
        m *= 1.0 - beta1
        m += first
        g *= g
        np.subtract(g, second, out=v)
        v *= 1.0 - beta2
        v += second
        np.sqrt(v, out=g)
        g += eps * root
        np.divide(m, g, out=g)
        g *= rate * root / correction1
        np.multiply(parameter, 1.0 - rate * decay, out=p)
        p -= g

    host.in_blocks(block, tensor.parameter.size, 1)
    return Stepped(*new)


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
