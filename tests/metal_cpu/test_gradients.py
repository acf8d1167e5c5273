"""Forward and backward kernels joined by mx.custom_function, differentiated through MLX and checked in float64."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from . import examples, finite_difference_vjp, metal_on_cpu, mlx_in_float64

RNG = np.random.default_rng(5)


def gated_formula(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-g))


def test_kernel_gradients_against_finite_differences() -> None:
    x, g, c = (mx.array(RNG.standard_normal(15), mx.float32) for _ in range(3))
    with metal_on_cpu():
        (y,), (dx, dg) = mx.vjp(examples.gated, [x, g], [c])
    np.testing.assert_allclose(np.array(y), gated_formula(np.array(x), np.array(g)), atol=1e-6)
    gradients: list[Any] = finite_difference_vjp(gated_formula, [x, g], c)
    for ours, wanted in zip((dx, dg), gradients, strict=True):
        np.testing.assert_allclose(np.array(ours), wanted, atol=1e-6)


def test_finite_differences_of_an_mlx_function() -> None:
    x, g, c = (mx.array(RNG.standard_normal(6), mx.float32) for _ in range(3))
    (_,), wanted = mx.vjp(examples.gated_reference, [x, g], [c])
    got: list[Any] = finite_difference_vjp(mlx_in_float64(examples.gated_reference), [x, g], c, step=1e-2)
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, np.array(theirs), atol=2e-5)


def test_finite_differences_skip_what_has_no_gradient_and_take_several_outputs() -> None:
    x, cell = mx.array([0.5, -1.0, 2.0]), mx.array([2, 0, 1])

    def fn(x: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x * x, x[cell] * 3

    gradient, none = finite_difference_vjp(fn, [x, cell], [mx.array([1.0, 2.0, 3.0]), mx.array([10.0, 20.0, 30.0])])
    assert none is None and gradient is not None
    np.testing.assert_allclose(gradient, [1.0 + 60.0, -4.0 + 90.0, 12.0 + 30.0], rtol=1e-8)


def test_a_kernel_without_vjp_refuses_to_be_differentiated() -> None:
    with metal_on_cpu(), pytest.raises(RuntimeError, match="has no vjp"):
        mx.grad(lambda x: examples.affine(x).sum())(mx.ones((8,)))
