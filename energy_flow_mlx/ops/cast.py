"""Many tensors in another dtype."""

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .kernel import as_type, call, use_kernel, whole

TENSORS = 14  # in one launch: with the sizes 29 buffers, and a Metal kernel has at most 31


def cast(tensors: Sequence[mx.array], dtype: mx.Dtype, *, kernels: bool | None = None) -> list[mx.array]:
    """The tensors in `dtype`, each rounded to nearest; their gradients come back in their own dtypes.

    One cast is nothing; those of all weights of a training step, and of their gradients, are 160 launches.

    Args:
        tensors: of any shapes and floating-point dtypes.
        dtype: float32, float16 or bfloat16.
        kernels: True or False forces the kernel or the plain graph.
    """
    if not use_kernel("cast", kernels):
        return cast_reference(tensors, dtype)
    result = list(tensors)
    # Tensors of one dtype go together: the dtypes of a launch decide which kernel is compiled.
    for own in dict.fromkeys(tensor.dtype for tensor in tensors):
        if own == dtype:
            continue
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == own]
        for place, new in zip(places, _with_vjp(dtype, own)(*[tensors[place] for place in places]), strict=True):
            result[place] = new
    return result


def cast_reference(tensors: Sequence[mx.array], dtype: mx.Dtype) -> list[mx.array]:
    """`cast` in plain MLX: the specification."""
    return [as_type(tensor, dtype) for tensor in tensors]


@functools.cache
def _with_vjp(dtype: mx.Dtype, own: mx.Dtype) -> Any:
    """Tensors of dtype `own` in `dtype`, as a differentiable function."""

    @mx.custom_function
    def run(*tensors: mx.array) -> list[mx.array]:
        return _launches(tensors, dtype)

    @run.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        return _launches(_listed(cotangents), own)

    return lambda *tensors: _listed(run(*tensors))


def _listed(arrays: Any) -> list[mx.array]:
    """MLX hands over a single array as itself."""
    return [arrays] if isinstance(arrays, mx.array) else list(arrays)


def _launches(tensors: Sequence[mx.array], dtype: mx.Dtype) -> list[mx.array]:
    return [new for at in range(0, len(tensors), TENSORS) for new in _launch(tensors[at : at + TENSORS], dtype)]


def _launch(tensors: Sequence[mx.array], dtype: mx.Dtype) -> list[mx.array]:
    """Up to TENSORS tensors, all of one dtype."""
    given = [*tensors, *[_filler(tensors[0].dtype)] * (TENSORS - len(tensors))]
    inputs = {f"x{position}": tensor for position, tensor in enumerate(given)}
    sizes = [tensor.size for tensor in given]
    inputs["sizes"] = whole(*sizes)
    outputs = {f"y{position}": (tensor.shape, dtype) for position, tensor in enumerate(given)}
    threads = sum(-(-size // 4) for size in sizes)
    return call("cast", "cast", inputs, outputs, threads=threads, template={"T": dtype})[: len(tensors)]


@functools.cache
def _filler(dtype: mx.Dtype) -> mx.array:
    """In the place of a tensor that is missing; of 8 elements, see `ops.kernel.filler`. Kept."""
    return mx.zeros((8,), dtype=dtype)
