"""bias_gelu_norm: kernel against reference, torch's layers, float64 differences, determinism, and mutants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from metal_cpu import finite_difference_vjp, metal_on_cpu, survivors

from energy_flow_mlx.ops.bias_gelu_norm import MOST_COLUMNS, MOST_THREADS, bias_gelu_norm, bias_gelu_norm_reference
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import HARNESS, backends, compare, kernels_on, same

kernel = partial(bias_gelu_norm, kernels=True)


def arguments(rows: int, size: int, seed: int = 0) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    x, bias, gamma, beta = (rng.standard_normal(shape) for shape in ((rows, size), (size,), (size,), (size,)))
    return [mx.array(array.astype(np.float32)) for array in (x, bias, 1 + 0.3 * gamma, beta)]


def calls() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """What the CUDA compiler is shown."""
    return [(kernel, arguments(5, size)) for size in (300, 33_000)]


@backends
@pytest.mark.parametrize(
    ("rows", "size"),
    # Behind 2,048 columns Metal cuts a row into parts: the last has 1, 452 or all of its columns.
    [(1, 1), (1, 7), (5, 33), (9, 200), (2, 2048), (5, 2049), (3, 2500), (3, 8192)],
)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(where: str, rows: int, size: int, dtype: mx.Dtype) -> None:
    compare(where, kernel, bias_gelu_norm_reference, arguments(rows, size), dtype=dtype)


@backends
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_the_widest_rows_of_a_preset(where: str, dtype: mx.Dtype) -> None:
    compare(where, kernel, bias_gelu_norm_reference, arguments(5, 20_000), dtype=dtype, checked=False)


@pytest.mark.parametrize("size", [2049, 8192])
def test_wide_rows_in_registers(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA has them."""
    for numbers in (MOST_THREADS, MOST_COLUMNS):
        monkeypatch.setitem(numbers, "metal", numbers["cuda"])
    compare(HARNESS, kernel, bias_gelu_norm_reference, arguments(3, size))


@backends
def test_wide_rows_by_blocks_of_many(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energy_flow_mlx.ops.bias_gelu_norm.FEW_ROWS", 2)  # 32 rows a block
    monkeypatch.setitem(MOST_COLUMNS, "cuda", MOST_COLUMNS["metal"])
    compare(where, kernel, bias_gelu_norm_reference, arguments(35, 2049), checked=False)


@backends
def test_many_rows_and_leading_dimensions(where: str) -> None:
    x, *parameters = arguments(600, 6)
    compare(where, kernel, bias_gelu_norm_reference, [x.reshape(3, 200, 6), *parameters])


def test_reference_is_torchs_layers() -> None:
    given = arguments(6, 10)
    tensors = [torch.tensor(np.array(array)) for array in given]
    norm = partial(torch.nn.functional.layer_norm, normalized_shape=(10,), weight=tensors[2], bias=tensors[3])
    wanted = norm(torch.nn.functional.gelu(tensors[0] + tensors[1]))
    actual = bias_gelu_norm_reference(*given)
    np.testing.assert_allclose(np.array(actual), wanted.numpy(), atol=2e-6)


def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut rows of more than 64 columns into parts of 64."""
    for name, value in (("WIDE_GROUP", 32), ("WIDE_PER", 2), ("MOST_COLUMNS", {"metal": 64, "cuda": 64})):
        monkeypatch.setattr(f"energy_flow_mlx.ops.bias_gelu_norm.{name}", value)


@pytest.mark.parametrize("size", [5, 70])
def test_gradient_equals_float64_differences(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    given = arguments(3, size)

    def formula(x: np.ndarray, bias: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
        def gelu(v: np.ndarray) -> np.ndarray:
            return v * (1 + torch.erf(torch.from_numpy(v / np.sqrt(2))).numpy()) / 2

        def norm(v: np.ndarray) -> np.ndarray:
            return (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5) * gamma + beta

        return norm(gelu(x + bias))

    cotangent = mx.array(np.random.default_rng(1).standard_normal((3, size)).astype(np.float32))
    wanted = finite_difference_vjp(formula, given, cotangent)
    with metal_on_cpu(caches=[build]):
        _, actual = mx.vjp(lambda *a: [kernel(*a)], given, [cotangent])
        mx.eval(actual)
    for a, w in zip(actual, wanted, strict=True):
        same(a, mx.array(w.astype(np.float32)), 2e-5)


@backends
@pytest.mark.parametrize("size", [64, 200])
def test_a_large_mean_does_not_cancel(where: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """GELU leaves numbers of this size as they are. Against float64: of wide rows MLX's own layer_norm loses more."""
    small_parts(monkeypatch)
    x, _, gamma, beta = arguments(2, size)
    given = [x, mx.full((size,), 1000.0), gamma, beta]
    with kernels_on(where):
        y = kernel(*given)
        mx.eval(y)
    value = np.array(x + 1000.0).astype(np.float64)
    normal = (value - value.mean(1, keepdims=True)) / np.sqrt(value.var(1, keepdims=True) + 1e-5)
    same(y, mx.array((normal * np.array(gamma) + np.array(beta)).astype(np.float32)), 1e-4)


@pytest.mark.parametrize("parts", [1, 5])
def test_the_same_bits_in_any_order_of_threads(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if parts > 1:
        small_parts(monkeypatch)
    given = arguments(6, 300)
    results = []
    for seed in (0, 1, 2):
        with kernels_on(HARNESS, seed):
            y, gradients = mx.vjp(lambda *a: [kernel(*a)], given, [mx.ones((6, 300))])
            mx.eval(y, gradients)
        results.append([*y, *gradients])
    for other in results[1:]:
        assert all(mx.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def check() -> None:
    given = arguments(6, 300)
    cotangent = mx.array(np.random.default_rng(1).standard_normal((6, 300)).astype(np.float32))
    wanted, dw = mx.vjp(lambda *a: [bias_gelu_norm_reference(*a)], given, [cotangent])
    out, d = mx.vjp(lambda *a: [kernel(*a)], given, [cotangent])
    mx.eval(out, d)
    for a, w in zip([*out, *d], [*wanted, *dw], strict=True):
        same(a, w, 2e-5)


BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);  // "


def test_broken_kernels_of_narrow_rows_are_noticed() -> None:
    edits = [
        (BARRIER + "sums of SIMD-groups\n    x =", "x ="),
        (BARRIER + "before other sums take their places", ""),
        (BARRIER + "sums of SIMD-groups\n        sum =", "sum ="),
        (BARRIER + "before the next row's sums take their places", ""),
        ("if (column < D) y[", "y["),
        ("if (me + k * GROUP < D) square", "square"),
        ("if (column >= D) continue;\n            float gradient", "float gradient"),
        ("uint end = metal::min((block + 1) * uint(ROWS), uint(x_shape[0]));", "uint end = (block + 1) * uint(ROWS);"),
        ("x = simd_sum(lane < SIMDGROUPS ? sums[lane] : 0.0f);", "x = simd_sum(sums[lane]);"),
        ("sum = simd_sum(lane < GROUP / 32 ? sums[lane] : 0.0f)", "sum = simd_sum(sums[lane])"),
        ("- normal[k] * product", ""),
        ("statistics[2 * row + 1] = scale;", "statistics[2 * row + 1] = mean;"),
        ("d_parameters[(block * 3 + 1) * D + column] = d_gamma[k];", "d_parameters[(block * 3 + 1) * D + column] = d_beta[k];"),
    ]  # fmt: skip
    assert not survivors(check, edits, caches=[build])


def test_broken_kernels_of_wide_rows_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    small_parts(monkeypatch)
    monkeypatch.setattr("energy_flow_mlx.ops.bias_gelu_norm.WIDE_GROUP", 64)
    monkeypatch.setattr("energy_flow_mlx.ops.bias_gelu_norm.WIDE_PER", 1)
    edits = [
        (BARRIER + "sums of SIMD-groups", ""),
        (BARRIER + "before other sums take their places", ""),
        (BARRIER + "sums over rows", ""),
        ("float count = float(metal::min(uint(GROUP * PER), D - begin));", "float count = float(GROUP * PER);"),
        ("if (begin + me + k * GROUP < D) square", "square"),
        ("square += parts[2 * (row * PARTS + part) + 1] + count", "square += count"),
        (" + count * difference * difference", ""),
        ("mean += count / float(D)", "mean += 1.0f / float(PARTS)"),
        ("if (begin == 0 && me == 0)", "if (me == 0)"),
        ("if (column >= D) continue;\n        float d =", "float d ="),
        ("if (column >= D) return;", ""),
        ("metal::min(uint(ROWS), uint(x_shape[0]) - first)", "ROWS"),
        ("over_parts<PARTS>(parts, first + me, 1)", "over_parts<PARTS>(parts, first + me, 0)"),
        ("parts[2 * threadgroup_position_in_grid.x + 1] = product;", "parts[2 * threadgroup_position_in_grid.x + 1] = sum;"),
        ("gradient *= integral + value * normal_density(value);", "gradient *= integral;"),
        ("d_parameters[(block * 3 + 1) * D + column] = d_gamma;", "d_parameters[(block * 3 + 1) * D + column] = d_beta;"),
    ]  # fmt: skip
    assert not survivors(check, edits, caches=[build])
