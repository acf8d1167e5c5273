"""masked_mean: kernel against reference, float64 differences, determinism, and mutants."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import finite_difference_vjp, metal_on_cpu, survivors

from energy_flow_mlx.ops.kernel import build
from energy_flow_mlx.ops.masked_mean import masked_mean, masked_mean_reference

from .kernel_parity import HARNESS, backends, compare, kernels_on, same

kernel = partial(masked_mean, kernels=True)


def arguments(batch: int, tokens: int, size: int) -> list[mx.array]:
    """Texts of differing length; the last has no tokens at all where there are several."""
    rng = np.random.default_rng(batch + tokens)
    mask = rng.random((batch, tokens)) < 0.7
    mask[0, 0] = True
    mask[-1] = batch == 1
    return [mx.array(rng.standard_normal((batch, tokens, size)).astype(np.float32)), mx.array(mask)]


@backends
@pytest.mark.parametrize(("batch", "tokens", "size"), [(1, 1, 1), (1, 2, 3), (3, 7, 5), (2, 19, 40), (64, 3, 33)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(where: str, batch: int, tokens: int, size: int, dtype: mx.Dtype) -> None:
    compare(where, kernel, masked_mean_reference, arguments(batch, tokens, size), dtype=dtype)


def test_reference_is_the_mean_of_the_tokens() -> None:
    x, mask = arguments(3, 6, 4)
    wanted = [x[row].tolist() for row in range(2)]
    means = [np.mean([t for t, m in zip(row, mask[i].tolist(), strict=True) if m], axis=0) for i, row in enumerate(wanted)]
    np.testing.assert_allclose(np.array(masked_mean_reference(x, mask)), [*means, np.zeros(4)], atol=1e-6)
    assert mx.array_equal(masked_mean_reference(x, 5 * mask.astype(mx.int32)), masked_mean_reference(x, mask))


@backends
def test_padding_is_not_read(where: str) -> None:
    x = mx.array([[[1.0, 2.0], [float("nan"), float("inf")]]])
    mask = mx.array([[1, 0]])
    with kernels_on(where):
        for mean in (kernel(x, mask), masked_mean_reference(x, mask)):
            assert mean.tolist() == [[1.0, 2.0]]


def test_gradient_equals_float64_differences() -> None:
    x, mask = arguments(2, 5, 3)
    cotangent = mx.array(np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32))
    token = np.array(mask).astype(np.float64)[..., None]
    (wanted,) = finite_difference_vjp(lambda v: (v * token).sum(1) / np.maximum(token.sum(1), 1), [x], cotangent)
    with metal_on_cpu(caches=[build]):
        _, (actual,) = mx.vjp(lambda v: [kernel(v, mask)], [x], [cotangent])
        mx.eval(actual)
    same(actual, mx.array(wanted.astype(np.float32)), 1e-5)


def test_the_same_bits_in_any_order_of_threads() -> None:
    results = []
    for seed in (0, 1, 2):
        with kernels_on(HARNESS, seed):
            results.append(kernel(*arguments(2, 40, 33)))
            mx.eval(results[-1])
    assert mx.array_equal(results[0], results[1]) and mx.array_equal(results[0], results[2])


def test_broken_kernels_are_noticed() -> None:
    x, mask = arguments(3, 9, 33)
    mask = mask[::-1, ::-1]  # the last token of the last text counts: beyond its columns the array ends
    cotangent = mx.array(np.random.default_rng(1).standard_normal((3, 33)).astype(np.float32))

    def check() -> None:
        wanted, dw = mx.vjp(lambda v: [masked_mean_reference(v, mask)], [x], [cotangent])
        out, d = mx.vjp(lambda v: [kernel(v, mask)], [x], [cotangent])
        mx.eval(out, d)
        same(out[0], wanted[0], 2e-5)
        same(d[0], dw[0], 2e-5)

    edits = [
        ("threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
        ("if (column < D) mean[", "mean["),
        ("if (column < D) sum +=", "sum +="),
        ("if (token >= uint(mask_shape[0]) * tokens) return;", ""),
        ("sum += sums[other * 32 + lane];", "sum += sums[32 + lane];"),
        ("found += counts[other];", ""),
        ("cotangent[row * D + i % D]", "cotangent[row * D]"),
    ]
    assert not survivors(check, edits, caches=[build])
