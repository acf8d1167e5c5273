"""bias_gelu_norm: kernel against reference, torch's layers, float64 differences, determinism, and mutants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from metal_cpu import finite_difference_vjp, metal_on_cpu, survivors

from energy_flow_mlx.ops.bias_gelu_norm import bias_gelu_norm, bias_gelu_norm_reference
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import HARNESS, backends, compare, kernels_on, same

kernel = partial(bias_gelu_norm, kernels=True)
orders = pytest.mark.parametrize("norm_first", [False, True])


def arguments(rows: int, size: int, seed: int = 0) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    x, bias, gamma, beta = (rng.standard_normal(shape) for shape in ((rows, size), (size,), (size,), (size,)))
    return [mx.array(array.astype(np.float32)) for array in (x, bias, 1 + 0.3 * gamma, beta)]


def calls() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """What the CUDA compiler is shown."""
    return [(partial(kernel, norm_first=first), arguments(5, 300)) for first in (False, True)]


@backends
@orders
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 7), (5, 33), (9, 200), (3, 8192)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(where: str, norm_first: bool, rows: int, size: int, dtype: mx.Dtype) -> None:
    compare(
        where,
        partial(kernel, norm_first=norm_first),
        partial(bias_gelu_norm_reference, norm_first=norm_first),
        arguments(rows, size),
        dtype=dtype,
    )


@backends
def test_many_rows_and_leading_dimensions(where: str) -> None:
    x, *parameters = arguments(600, 6)
    compare(where, kernel, bias_gelu_norm_reference, [x.reshape(3, 200, 6), *parameters])


@orders
def test_reference_is_torchs_layers(norm_first: bool) -> None:
    given = arguments(6, 10)
    tensors = [torch.tensor(np.array(array)) for array in given]
    norm = partial(torch.nn.functional.layer_norm, normalized_shape=(10,), weight=tensors[2], bias=tensors[3])
    summed = tensors[0] + tensors[1]
    gelu = torch.nn.functional.gelu
    wanted = gelu(norm(summed)) if norm_first else norm(gelu(summed))
    actual = bias_gelu_norm_reference(*given, norm_first=norm_first)
    np.testing.assert_allclose(np.array(actual), wanted.numpy(), atol=2e-6)


@orders
def test_gradient_equals_float64_differences(norm_first: bool) -> None:
    given = arguments(3, 5)

    def formula(x: np.ndarray, bias: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
        def gelu(v: np.ndarray) -> np.ndarray:
            return v * (1 + torch.erf(torch.from_numpy(v / np.sqrt(2))).numpy()) / 2

        def norm(v: np.ndarray) -> np.ndarray:
            return (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5) * gamma + beta

        return gelu(norm(x + bias)) if norm_first else norm(gelu(x + bias))

    cotangent = mx.array(np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32))
    wanted = finite_difference_vjp(formula, given, cotangent)
    with metal_on_cpu(caches=[build]):
        _, actual = mx.vjp(lambda *a: [kernel(*a, norm_first=norm_first)], given, [cotangent])
        mx.eval(actual)
    for a, w in zip(actual, wanted, strict=True):
        same(a, mx.array(w.astype(np.float32)), 2e-5)


@backends
def test_a_large_mean_does_not_cancel(where: str) -> None:
    x, _, gamma, beta = arguments(2, 64)
    given = [x, mx.full((64,), 1000.0), gamma, beta]
    with kernels_on(where):
        y = kernel(*given, norm_first=True)
        mx.eval(y)
    same(y, bias_gelu_norm_reference(*given, norm_first=True), 1e-4)


def test_the_same_bits_in_any_order_of_threads() -> None:
    given = arguments(6, 300)
    results = []
    for seed in (0, 1, 2):
        with kernels_on(HARNESS, seed):
            y, gradients = mx.vjp(lambda *a: [kernel(*a)], given, [mx.ones((6, 300))])
            mx.eval(y, gradients)
        results.append([*y, *gradients])
    for other in results[1:]:
        assert all(mx.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_broken_kernels_are_noticed() -> None:
    given = arguments(6, 300)
    cotangent = mx.array(np.random.default_rng(1).standard_normal((6, 300)).astype(np.float32))

    def check() -> None:
        wanted, dw = mx.vjp(lambda *a: [bias_gelu_norm_reference(*a)], given, [cotangent])
        out, d = mx.vjp(lambda *a: [kernel(*a)], given, [cotangent])
        mx.eval(out, d)
        for a, w in zip([*out, *d], [*wanted, *dw], strict=True):
            same(a, w, 2e-5)

    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    edits = [
        (f"{barrier}\n        moment", "moment"),
        (f"if (pass == 0) mean = moment;\n        {barrier}", "if (pass == 0) mean = moment;"),
        (f"{barrier}\n        sum =", "sum ="),
        (f"d_x[row * D + column] = T(gradient);\n        }}\n        {barrier}", "d_x[row * D + column] = T(gradient);\n        }"),
        ("if (column >= D) continue;\n        float result", "float result"),
        ("if (me + k * GROUP >= D) continue;", ""),
        ("if (column >= D) continue;\n            float gradient", "float gradient"),
        ("uint end = metal::min((block + 1) * uint(ROWS), uint(x_shape[0]));", "uint end = (block + 1) * uint(ROWS);"),
        ("lane < SIMDGROUPS ? sums[lane] : 0.0f) / float(D);\n        if", "sums[lane]) / float(D);\n        if"),
        ("- normal[k] * product", ""),
        ("statistics[2 * row + 1] = scale;", "statistics[2 * row + 1] = mean;"),
        ("d_parameters[(block * 3 + 1) * D + column] = d_gamma[k];", "d_parameters[(block * 3 + 1) * D + column] = d_beta[k];"),
    ]  # fmt: skip
    assert not survivors(check, edits, caches=[build])
