"""What newborn flows take over from their parents."""

import functools
from typing import Any

import mlx.core as mx

from .differentiable import Differentiable
from .kernel import as_type, call, columns_of_a_thread, use_kernel
from .spawn import Births


def inherit(own: mx.array, inherited: mx.array, births: Births, *, kernels: bool | None = None) -> mx.array:
    """`own`, with the parents' rows of `inherited` in the slots of newborn children.

    Args:
        own, inherited: [N, d] of one dtype, N = B * C: C slots a sample, the last K of them for children.
        births: of this step, for B samples with K child slots each.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.

    Returns:
        [N, d].
    """
    if not use_kernel("inherit", kernels):
        return inherit_reference(own, inherited, births)
    values: mx.array = _with_vjp()(own, inherited, *_numbers(births))
    return values


def inherit_reference(own: mx.array, inherited: mx.array, births: Births) -> mx.array:
    """`inherit` in plain MLX: the specification."""
    parent = mx.stop_gradient(births.parent)
    batch, children = parent.shape
    slots = own.shape[0] // batch
    source = mx.arange(batch)[:, None] * slots + mx.maximum(parent, 0)
    first, later = mx.split(own.reshape(batch, slots, -1), [slots - children], axis=1)
    newborn = mx.where(parent[..., None] >= 0, inherited[source], later)
    return mx.concatenate([first, newborn], axis=1).reshape(own.shape)


def inherit_gradient(
    cotangent: mx.array,
    births: Births,
    *,
    stays: bool = True,
    passes: bool = True,
    kernels: bool | None = None,
) -> mx.array:
    """The gradient [N, d] of `own` if `stays`, plus that of `inherited` if `passes`, from that of the result of `inherit`."""
    if use_kernel("inherit", kernels):
        return backward(cotangent, *_numbers(births), stays=stays, passes=passes)
    # inherit is linear: where its gradient is taken does not matter.
    _, (own, inherited) = mx.vjp(
        lambda own, inherited: [inherit_reference(own, inherited, births)], [cotangent, cotangent], [cotangent]
    )
    return own + inherited if stays and passes else own if stays else inherited


def _numbers(births: Births) -> list[mx.array]:
    """What the kernels read. Inside mx.checkpoint these are inputs of the backward pass, integers or not."""
    return [mx.stop_gradient(numbers) for numbers in (births.parent, births.before, births.born)]


@functools.cache
def _with_vjp() -> Any:
    @Differentiable
    def values(own: mx.array, inherited: mx.array, parent: mx.array, before: mx.array, born: mx.array) -> mx.array:
        return forward(own, inherited, parent)

    @values.vjp
    def gradients(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        numbers = primals[2:]
        own = backward(cotangent, *numbers, stays=True, passes=False)
        inherited = backward(cotangent, *numbers, stays=False, passes=True)
        return own, inherited, *map(mx.zeros_like, numbers)

    return values


def forward(own: mx.array, inherited: mx.array, parent: mx.array) -> mx.array:
    """The forward kernel."""
    template, threads = _template(own)
    inputs = {"own": own, "inherited": as_type(inherited, own.dtype), "parent": parent}
    outputs = {"values": (own.shape, own.dtype)}
    return call("inherit", "forward", inputs, outputs, threads=threads, template=template)[0]


def backward(
    cotangent: mx.array, parent: mx.array, before: mx.array, born: mx.array, *, stays: bool, passes: bool
) -> mx.array:
    """The backward kernel."""
    template, threads = _template(cotangent)
    inputs = {"cotangent": cotangent, "parent": parent, "before": before, "born": born}
    outputs = {"gradient": (cotangent.shape, cotangent.dtype)}
    template |= {"STAYS": stays, "PASSES": passes}
    return call("inherit", "backward", inputs, outputs, threads=threads, template=template)[0]


def _template(rows: mx.array) -> tuple[dict[str, Any], int]:
    """The template arguments, and the number of threads."""
    size = rows.shape[1]
    width = columns_of_a_thread(size)
    return {"T": rows.dtype, "D": size, "V": width}, rows.size // width
