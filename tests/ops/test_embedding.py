"""embedding: kernel against reference, float64 differences, determinism, ids beyond the table, and mutants."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from metal_cpu import finite_difference_vjp, metal_on_cpu, survivors

from energy_flow_mlx.ops.embedding import embedding, embedding_reference
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import HARNESS, backends, compare, kernels_on, same

kernel = partial(embedding, kernels=True)


def arguments(entries: int, size: int, shape: tuple[int, ...], *, used: int | None = None) -> list[mx.array]:
    """A table, and ids among its first `used` rows (all of them by default), counted from either end."""
    rng = np.random.default_rng(entries + size)
    ids = rng.integers(0, used or entries, shape)
    ids = np.where(rng.random(shape) < 0.3, ids - entries, ids).astype(np.int32)
    return [mx.array(rng.standard_normal((entries, size)).astype(np.float32)), mx.array(ids)]


@backends
@pytest.mark.parametrize(
    ("entries", "size", "shape", "used"),
    [
        (1, 1, (1,), 1),
        (7, 3, (1,), 7),
        (1, 8, (40,), 1),  # all ids equal
        (9, 4, (2, 5), 9),
        (5, 6, (4,), 5),
        (50, 5, (3, 2, 4), 50),
        (400, 33, (2, 9), 400),  # few repeated
        (40, 132, (2, 300), 3),  # runs of hundreds, more columns than a threadgroup has
    ],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(
    where: str, entries: int, size: int, shape: tuple[int, ...], used: int, dtype: mx.Dtype
) -> None:
    compare(where, kernel, embedding_reference, arguments(entries, size, shape, used=used), dtype=dtype)


@backends
@pytest.mark.parametrize("kind", [mx.uint8, mx.int16, mx.int64, mx.uint32])
def test_ids_of_any_integer_type(where: str, kind: mx.Dtype) -> None:
    table, ids = arguments(7, 4, (3, 5))
    ids = ids % 7
    with kernels_on(where):
        assert mx.array_equal(kernel(table, ids.astype(kind)), table[ids])


def test_reference_is_what_nn_embedding_gives() -> None:
    layer = nn.Embedding(9, 6)
    ids = arguments(9, 6, (4, 5))[1] % 9
    assert mx.array_equal(embedding_reference(layer.weight, ids), layer(ids))


def test_no_ids() -> None:
    assert embedding(mx.ones((3, 2)), mx.zeros((2, 0), dtype=mx.int32), kernels=True).shape == (2, 0, 2)


@backends
@pytest.mark.parametrize("function", [kernel, embedding_reference])
def test_ids_beyond_the_table_show_and_touch_nothing(where: str, function: object) -> None:
    table = mx.arange(6, dtype=mx.float32).reshape(3, 2)
    ids = mx.array([3, -3, -4, 2, 2**31 - 1, -(2**31), 2])
    known = np.array([False, True, False, True, False, False, True])
    with kernels_on(where):
        values, (gradient,) = mx.vjp(lambda table: [function(table, ids)], [table], [mx.ones((7, 2))])
        mx.eval(values, gradient)
    rows = np.array(values[0])
    assert np.array_equal(rows[known], [[0, 1], [4, 5], [4, 5]]) and np.isnan(rows[~known]).all()
    assert gradient.tolist() == [[1, 1], [0, 0], [2, 2]]


def test_gradient_equals_float64_differences() -> None:
    table, ids = arguments(5, 3, (2, 8))
    cotangent = mx.array(np.random.default_rng(1).standard_normal((2, 8, 3)).astype(np.float32))
    (wanted,) = finite_difference_vjp(lambda v: v[np.array(ids)], [table], cotangent)
    with metal_on_cpu(caches=[build]):
        _, (actual,) = mx.vjp(lambda v: [kernel(v, ids)], [table], [cotangent])
        mx.eval(actual)
    same(actual, mx.array(wanted.astype(np.float32)), 1e-5)


@pytest.mark.parametrize("kernels", [False, True])
def test_wide_ids_do_not_wrap_around(kernels: bool) -> None:
    table = mx.arange(6.0).reshape(3, 2)
    wide = [
        mx.array(np.array([2, -3, 2**32, 3, -4, -(2**40)])),
        mx.array(np.array([2, 0, 2**32 - 1], dtype=np.uint32)),
        mx.array(np.array([2, 0, 2**64 - 1, 2**32], dtype=np.uint64)),
    ]
    for ids in wide:
        with kernels_on(HARNESS):
            rows = embedding(table, ids, kernels=kernels)
            mx.eval(rows)
        assert mx.array_equal(rows[:2], mx.array([[4.0, 5.0], [0.0, 1.0]]))
        assert mx.all(mx.isnan(rows[2:]))
    with pytest.raises(ValueError, match="ids: dtype .*float32 came, accepted are integers"):
        embedding(table, mx.array([1.7]), kernels=kernels)


def test_the_same_bits_in_any_order_of_threads() -> None:
    table, ids = arguments(5, 33, (400,), used=2)
    cotangent = mx.array(np.random.default_rng(1).standard_normal((400, 33)).astype(np.float32))
    results = []
    for seed in (0, 1, 2):
        with kernels_on(HARNESS, seed):
            results.append(mx.vjp(lambda v: [kernel(v, ids)], [table], [cotangent])[1][0])
            mx.eval(results[-1])
    assert mx.array_equal(results[0], results[1]) and mx.array_equal(results[0], results[2])


def test_broken_kernels_are_noticed() -> None:
    table, ids = arguments(5, 5, (700,), used=2)
    ids[:40] = 4  # the end of the sorted ids, and a run that ends within a SIMD-group
    ids[-1] = 5
    cotangent = mx.array(np.random.default_rng(1).standard_normal((700, 5)).astype(np.float32))

    def check() -> None:
        wanted, dw = mx.vjp(lambda v: [embedding_reference(v, ids)], [table], [cotangent])
        out, d = mx.vjp(lambda v: [kernel(v, ids)], [table], [cotangent])
        mx.eval(out, d)
        assert mx.array_equal(out[0], wanted[0], equal_nan=True)
        same(d[0], dw[0], 2e-5)

    edits = [
        ("if (number >= uint(ids_shape[0])) return;", ""),
        ("ids[number] < 0 ? ids[number] + entries : ids[number]", "ids[number]"),
        ("row < entries", "row <= entries"),
        ("known ? row : -1", "row"),
        ("if (row < 0 || (", "if (("),
        ("rows[order[first - 1]] == row", "false"),
        ("first + part * 32; start", "first; start"),
        ("start + lane < count ? order[start + lane] : 0", "order[start + lane]"),
        ("if (column >= COLUMNS) continue;", ""),
        ("if (equal < 32) break;", "break;"),
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
        ("if (part != 0 || column >= COLUMNS) return;", "if (part != 0) return;"),
        ("sum[k] += sums[(other * 32 + lane) * V + k];", "sum[k] += sums[lane * V + k];"),
    ]
    assert not survivors(check, edits, caches=[build])
