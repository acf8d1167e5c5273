"""gru_gates: kernel against reference, float64 differences, and mutants."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import finite_difference_vjp, metal_on_cpu, survivors

from energy_flow_mlx.ops.gru_gates import BACKWARD_COLUMNS, gru_gates, gru_gates_reference
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import HARNESS, backends, compare, same

kernel = partial(gru_gates, kernels=True)


def arguments(rows: int, size: int, seed: int = 0) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    shapes = [(rows, 3 * size), (rows, 3 * size), (3 * size,), (size,), (rows, size)]
    floats = [mx.array(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
    return [*floats, mx.array(rng.random(rows) < 0.7)]


@backends
@pytest.mark.parametrize(("rows", "size"), [(1, 4), (1, 1), (1, 2), (7, 12), (33, 5), (65, 36), (9, 6)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(where: str, rows: int, size: int, dtype: mx.Dtype) -> None:
    compare(where, kernel, gru_gates_reference, arguments(rows, size), dtype=dtype)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_four_columns_a_thread_of_the_backward_kernel(dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA has it."""
    monkeypatch.setitem(BACKWARD_COLUMNS, "metal", 4)
    compare(HARNESS, kernel, gru_gates_reference, arguments(7, 12), dtype=dtype)


@backends
@pytest.mark.parametrize("bound", [None, 0.5])
def test_bound_and_no_mask(where: str, bound: float | None) -> None:
    without_mask = arguments(9, 8)[:5]
    compare(where, partial(kernel, bound=bound), partial(gru_gates_reference, bound=bound), without_mask)
    compare(where, partial(kernel, bound=bound), partial(gru_gates_reference, bound=bound), arguments(9, 8))


@backends
def test_non_finite_gates_are_sanitised(where: str) -> None:
    given = arguments(4, 4)
    bad = np.array(given[0])
    bad[0, 0], bad[1, 9], bad[2, 5] = np.nan, np.inf, -np.inf
    given[0] = mx.array(bad)
    hidden = np.array(given[4])
    hidden[3, 1] = np.inf
    given[4] = mx.array(hidden)
    compare(where, partial(kernel, bound=10.0), partial(gru_gates_reference, bound=10.0), given)


def test_gradient_equals_float64_differences() -> None:
    given = arguments(3, 4)

    def formula(gi: np.ndarray, gh: np.ndarray, b: np.ndarray, bh: np.ndarray, h: np.ndarray) -> np.ndarray:
        def sigmoid(x: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-x))

        r = sigmoid(gi[:, :4] + gh[:, :4] + b[:4])
        z = sigmoid(gi[:, 4:8] + gh[:, 4:8] + b[4:8])
        n = np.tanh(gi[:, 8:] + b[8:] + r * (gh[:, 8:] + bh))
        return np.where(np.array(given[5])[:, None], (1 - z) * n + z * h, h)

    cotangent = mx.array(np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32))
    wanted = finite_difference_vjp(formula, given[:5], cotangent)
    with metal_on_cpu(caches=[build]):
        _, actual = mx.vjp(lambda *floats: [kernel(*floats, given[5])], given[:5], [cotangent])
        mx.eval(actual)
    for a, w in zip(actual, wanted, strict=True):
        same(a, mx.array(w.astype(np.float32)), 2e-5)


def test_broken_kernels_are_noticed() -> None:
    def check() -> None:
        given = arguments(33, 12)
        wanted, dw = mx.vjp(lambda *a: [gru_gates_reference(*a, given[5])], given[:5], [mx.ones((33, 12))])
        out, d = mx.vjp(lambda *a: [kernel(*a, given[5])], given[:5], [mx.ones((33, 12))])
        mx.eval(out, d)
        for a, w in zip([*out, *d], [*wanted, *dw], strict=True):
            same(a, w, 2e-5)

    edits = [
        ("if (row >= uint(hidden_shape[0])) return;", ""),
        ("if (block * ROWS >= rows) return;", ""),
        ("uint end = metal::min((block + 1) * uint(ROWS), rows);", "uint end = (block + 1) * uint(ROWS);"),
        ("store_some<V>(d_bias, (block * 4 + 2) * COLUMNS + column, sum_n);",
         "store_some<V>(d_bias, (block * 4 + 1) * COLUMNS + column, sum_n);"),
        ("dr[k] = dn[k] * reset * r * (1.0f - r);", "dr[k] = dn[k] * r * (1.0f - r);"),
    ]  # fmt: skip
    assert not survivors(check, edits, caches=[build])
