"""heads: kernel against reference, and mutants."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import finite_difference_vjp, metal_on_cpu, survivors

from energy_flow_mlx.ops.heads import FORWARD_ROWS, heads, heads_reference
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import HARNESS, backends, compare, same

kernel = partial(heads, kernels=True)


def arguments(rows: int, own: int, other: int, seed: int = 0) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    shapes = [(rows, own + other), (own + other,), (own,), (3, other), (4,)]
    return [mx.array((rng.standard_normal(shape) / max(1, shape[-1]) ** 0.5).astype(np.float32)) for shape in shapes]


def scaled(function: object) -> object:
    return lambda *floats: function(*floats, mx.array([0.25]))


@backends
@pytest.mark.parametrize(("rows", "own", "other"), [(1, 2, 3), (1, 4, 64), (4, 5, 6), (9, 16, 64), (70, 33, 5)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(where: str, rows: int, own: int, other: int, dtype: mx.Dtype) -> None:
    compare(where, scaled(kernel), scaled(heads_reference), arguments(rows, own, other), dtype=dtype)


def test_a_row_a_simdgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA has it."""
    monkeypatch.setitem(FORWARD_ROWS, "metal", 1)
    compare(HARNESS, scaled(kernel), scaled(heads_reference), arguments(9, 16, 64))


def test_gradient_equals_float64_differences() -> None:
    given = arguments(3, 4, 5)

    def formula(inner: np.ndarray, b: np.ndarray, we: np.ndarray, wd: np.ndarray, bo: np.ndarray) -> list[np.ndarray]:
        from math import erf

        x = inner + b
        a = 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))
        return [np.tanh(a[:, :4] @ we + bo[0])[:, None], 0.25 * (a[:, 4:] @ wd.T + bo[1:])]

    rng = np.random.default_rng(1)
    cotangents = [mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in ((3, 1), (3, 3))]
    wanted = finite_difference_vjp(formula, given, cotangents)
    with metal_on_cpu(caches=[build]):
        _, actual = mx.vjp(scaled(kernel), given, cotangents)
        mx.eval(actual)
    for a, w in zip(actual, wanted, strict=True):
        same(a, mx.array(w.astype(np.float32)), 2e-5)


def test_broken_kernels_are_noticed() -> None:
    def check() -> None:
        given = arguments(35, 7, 9)
        cotangents = [mx.ones((35, 1)), mx.ones((35, 3)) * mx.array([1.0, 2.0, 3.0])]
        wanted, dw = mx.vjp(scaled(heads_reference), given, cotangents)
        out, d = mx.vjp(scaled(kernel), given, cotangents)
        mx.eval(out, d)
        for a, w in zip([*out, *d], [*wanted, *dw], strict=True):
            same(a, w, 2e-5)

    edits = [
        ("metal::min(first + r, rows - 1)", "first + r"),
        ("if (lane > 0 || row >= rows) continue;", "if (lane > 0) continue;"),
        ("if (block * ROWS >= rows) return;", ""),
        ("displacement_weight[2 * M + k]", "displacement_weight[M + k]"),
        ("j == 2 ? of_y : of_z", "of_y"),
        ("sum_second += a * of_y;", "sum_second += a * of_z;"),
    ]
    assert not survivors(check, edits, caches=[build])
