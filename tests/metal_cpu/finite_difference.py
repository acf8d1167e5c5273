"""Gradients from float64 differences: a reference that knows nothing of anybody's derivation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

Array = np.ndarray | mx.array
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))  # the error falls with the fourth power of the step


def finite_difference_vjp(
    fn: Callable[..., Any], args: Sequence[Array], cotangent: Any, *, step: float = 1e-4
) -> list[np.ndarray | None]:
    """Vector-Jacobian product of `fn` at `args` by five-point differences in float64.

    Args:
        fn: a formula over NumPy arrays, or a plain MLX function wrapped by `mlx_in_float64`. Floating-point arguments
            arrive as float64, others unchanged. It returns one array or a sequence of them.
        args: the point; keep it small (each element costs four evaluations) and `2 * step` away from kinks.
        cotangent: one array for each output of `fn`.
        step: spacing of the points.

    Returns:
        One float64 array for each argument; None for integer and boolean ones.
    """
    point = [_numpy(a) for a in args]
    weights = [_numpy(c) for c in _sequence(cotangent)]

    def projected() -> float:
        return sum(float(np.sum(w * _numpy(o))) for w, o in zip(weights, _sequence(fn(*point)), strict=True))

    gradients: list[np.ndarray | None] = []
    for values in point:
        if values.dtype != np.float64:
            gradients.append(None)
            continue
        gradient = np.zeros_like(values)
        for at in np.ndindex(*values.shape):
            centre = values[at]
            for offset, weight in STENCIL:
                values[at] = centre + offset * step
                gradient[at] += weight * projected() / step
            values[at] = centre
        gradients.append(gradient)
    return gradients


def mlx_in_float64(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` over NumPy arrays, computed by MLX in float64 on the CPU.

    MLX's CPU float64 exp, sigmoid, sin, cos, erf and softmax are accurate to about 1e-7 only (tanh, log, sqrt and
    powers are exact): with those use a step of 1e-2 and expect about 1e-5, or write the formula in NumPy.
    """

    def over_numpy(*args: np.ndarray) -> list[np.ndarray]:
        with mx.stream(mx.cpu):
            arrays = [mx.array(a, mx.float64) if a.dtype == np.float64 else mx.array(a) for a in args]
            return [_numpy(o) for o in _sequence(fn(*arrays))]

    return over_numpy


def _sequence(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _numpy(x: Array) -> np.ndarray:
    """A copy of its own, float64 where `x` is floating point."""
    if isinstance(x, mx.array):
        with mx.stream(mx.cpu):
            return np.array(x.astype(mx.float64) if mx.issubdtype(x.dtype, mx.floating) else x)
    return np.array(x, np.float64 if np.issubdtype(x.dtype, np.floating) else None)
