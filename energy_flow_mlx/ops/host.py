"""Elementwise work on a CPU by NumPy.

MLX's Linux build computes tanh, sigmoid, exp and erf on a CPU one number after another on one thread: 19 to 38 ns each, where NumPy's vector
loops take about one. An op with such a form reads its inputs as NumPy arrays, without a copy, and goes through them in blocks of rows that
stay in a core's cache, on all cores. It has to wait for its inputs, so that it cannot be traced.
"""

import functools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from .kernel import as_type, on_gpu, switched_off

Rows: TypeAlias = NDArray[np.float32]

# Numbers of an array that a block of rows has: 512 KiB, of which two fit into a core's second-level cache. Smaller blocks stay there
# better, but threads want Python's lock after every call of NumPy, and where calls are short they wait for it longer than they compute.
BLOCK = 2**17

LEAST = 2**12  # numbers of an op's largest array; of fewer, waiting for them costs what NumPy saves

# Phi(x), the normal distribution's integral, is (1 + tanh(x q(x^2))) / 2 with these coefficients of q, the highest power first. They
# were fitted to |x| < 6; beyond, q stays above 1. In float32 Phi is off by 1.3e-7 at most.
_NORMAL = (1.80936566e-9, -1.33646964e-7, 3.97311477e-6, -5.52779529e-5, -3.29547116e-5, 3.63339111e-2, 7.97884464e-1)
_DENSITY = 1.0 / np.sqrt(2.0 * np.pi)


def by_host(op: str) -> bool:
    """Whether `op` may compute by NumPy: on a CPU under Linux, unless ENERGY_FLOW_KERNELS asks for MLX's own graph."""
    return sys.platform == "linux" and not on_gpu() and not switched_off(op)


def use_host(op: str, wanted: bool | None, *arrays: Any) -> bool:
    """Whether `op` computes by NumPy where no kernel is used: on a CPU under Linux, if its inputs are many numbers and can be read.

    They cannot while `mx.compile`, `mx.vmap` or `mx.export_function` trace a function. ENERGY_FLOW_KERNELS is as for kernels:
    `off` and `-op` ask for MLX's own graph.

    Args:
        wanted: as `ops.kernel.use_kernel` takes it; False, like True, forces something else than NumPy.
        arrays: the inputs, or trees of them, which are computed here.
    """
    if wanted is not None or not by_host(op):
        return False
    if max(array.size for _, array in cast(list[tuple[str, mx.array]], tree_flatten(arrays))) < LEAST:
        return False
    try:
        mx.eval(*arrays)
    except ValueError:  # of a function that is traced
        return False
    return True


def read(array: mx.array, dtype: mx.Dtype = mx.float32) -> NDArray[Any]:
    """A view of an array's numbers in `dtype`, which must be one of NumPy's."""
    return np.array(as_type(array, dtype), copy=False)


def new(shape: Sequence[int]) -> tuple[mx.array, Rows]:
    """An array of float32 zeros, and a view to write its numbers to before anything else knows of it."""
    array = mx.zeros(shape)
    mx.eval(array)
    return array, np.array(array, copy=False)


def in_blocks(function: Callable[[slice], Any], rows: int, columns: int) -> list[Any]:
    """What `function` returns for each block of `rows` rows of about `columns` numbers, on all cores.

    The blocks depend on `rows` and `columns` alone, so that sums over them have the same bits on every machine.
    """
    length = max(1, BLOCK // columns)
    blocks = [slice(start, min(start + length, rows)) for start in range(0, rows, length)]
    several = min(_cores(), len(blocks))

    def share(first: int) -> list[Any]:
        with np.errstate(all="ignore"):  # infinities and NaN are results like others
            return [function(block) for block in blocks[first::several]]

    if several < 2:
        return share(0)
    found: list[Any] = [None] * len(blocks)
    for first, results in enumerate(_threads().map(share, range(several))):
        found[first::several] = results
    return found


def detached(array: mx.array) -> mx.array:
    """A copy of an array's numbers. While MLX differentiates, what was computed by its operations keeps what it was computed from."""
    if array.dtype == mx.bfloat16:  # which NumPy does not have
        return detached(array.view(mx.uint16)).view(mx.bfloat16)
    return mx.array(np.array(array, copy=False))


def total(sums: Sequence[Rows], dtype: mx.Dtype) -> mx.array:
    """The sum of what blocks returned, in `dtype`."""
    return as_type(mx.array(np.add.reduce(sums, axis=0, keepdims=True)[0]), dtype)


def sigmoid(x: Rows) -> None:
    """1 / (1 + exp(-x)), in place."""
    x *= 0.5
    np.tanh(x, out=x)
    x *= 0.5
    x += 0.5


def within(x: Rows, bound: float) -> bool:
    """Whether all of x are numbers from -bound to bound; NaN is not."""
    return not x.size or bool(x.max() <= bound and x.min() >= -bound)


def normal_integral(x: Rows) -> Rows:
    """Phi(x), the share of a standard normal distribution below x."""
    square = x * x
    phi = square * np.float32(_NORMAL[0])
    for coefficient in _NORMAL[1:-1]:
        phi += np.float32(coefficient)
        phi *= square
    phi += np.float32(_NORMAL[-1])
    phi *= x
    np.tanh(phi, out=phi)
    phi *= 0.5
    phi += 0.5
    return phi


def gelu_slope(x: Rows, phi: Rows) -> Rows:
    """The derivative of the GELU x Phi(x) at x, given Phi(x)."""
    slope = x * x
    slope *= -0.5
    np.exp(slope, out=slope)
    slope *= x
    slope *= np.float32(_DENSITY)
    slope += phi
    return slope


@functools.cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_cores(), thread_name_prefix="elementwise")
