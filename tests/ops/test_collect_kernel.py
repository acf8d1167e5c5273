"""collect's kernels against the reference, float64 differences, the same bits in any order of threads, and mutants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import finite_difference_vjp, metal_on_cpu, survivors

from energy_flow_mlx.ops.collect import collect, collect_reference
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import HARNESS, backends, compare, kernels_on, same

methods = pytest.mark.parametrize("method", ["nearest", "bilinear"])
variants = pytest.mark.parametrize("deterministic", [True, False])


def arguments(batch: int, flows: int, *, in_order: bool = True, seed: int = 0) -> list[mx.array]:
    """`flows` flows a sample, some on the walls and some not collected."""
    rng = np.random.default_rng(seed)
    number = batch * flows
    position = rng.uniform(-1, 1, (number, 3)).astype(np.float32)
    position[rng.random((number, 3)) < 0.2] = 1.0
    sample = np.repeat(np.arange(batch), flows)
    return [
        mx.array(rng.uniform(-1, 1, (number, 1)).astype(np.float32)),
        mx.array(position),
        mx.array(rng.integers(0, 6, number).astype(np.int32)),
        mx.array((sample if in_order else rng.permutation(sample)).astype(np.int32)),
        mx.array(rng.random(number) < 0.8),
    ]


def calls() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """What the CUDA compiler is shown."""
    size = {"batch": 2, "width": 4, "height": 3, "kernels": True}
    return [
        (partial(collect, **size, method=method, deterministic=deterministic), arguments(2, 9))
        for method in ("nearest", "bilinear")
        for deterministic in (True, False)
    ]


@backends
@methods
@variants
@pytest.mark.parametrize(
    ("batch", "flows", "width", "height", "in_order"),
    [(1, 1, 2, 2, True), (1, 6, 3, 2, True), (3, 40, 5, 4, True), (3, 40, 5, 4, False), (2, 300, 23, 24, True), (2, 300, 33, 34, True)],
)
def test_kernel_equals_reference(
    where: str, method: str, deterministic: bool, batch: int, flows: int, width: int, height: int, in_order: bool
) -> None:
    size = {"batch": batch, "width": width, "height": height, "method": method}
    compare(
        where,
        partial(collect, **size, deterministic=deterministic, kernels=True),
        partial(collect_reference, **size),
        arguments(batch, flows, in_order=in_order),
    )


@backends
@methods
@variants
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_16_bit_flows(where: str, method: str, deterministic: bool, dtype: mx.Dtype) -> None:
    size = {"batch": 3, "width": 5, "height": 4, "method": method}
    kernel = partial(collect, **size, deterministic=deterministic, kernels=True)
    compare(where, kernel, partial(collect_reference, **size), arguments(3, 40), dtype=dtype)


@backends
@methods
def test_the_largest_lattice_and_batch(where: str, method: str) -> None:
    """100 x 100 cells; 64 samples; a surface of one column (nearest)."""
    for batch, flows, width, height in [(1, 40, 100, 100), (64, 3, 2, 3), (2, 5, 1 if method == "nearest" else 2, 3)]:
        size = {"batch": batch, "width": width, "height": height, "method": method}
        compare(where, partial(collect, **size, kernels=True), partial(collect_reference, **size), arguments(batch, flows))


@backends
@methods
@variants
def test_nobody_many_in_one_cell_and_long_lives(where: str, method: str, deterministic: bool) -> None:
    size = {"batch": 3, "width": 4, "height": 3, "method": method}
    kernel, reference = partial(collect, **size, deterministic=deterministic, kernels=True), partial(collect_reference, **size)
    energy, position, age, sample, collected = arguments(3, 90)
    nobody = mx.logical_and(collected, sample == 1)  # samples 0 and 2 stay empty
    compare(where, kernel, reference, [energy, position, age, sample, nobody])
    crowded = mx.concatenate([mx.zeros((270, 2)) + 0.1, position[:, 2:]], axis=1)
    compare(where, kernel, reference, [energy, crowded, age, sample, collected])
    old = mx.where(mx.arange(270) % 3 == 0, 800, age)
    with kernels_on(where):
        surface = kernel(energy, position, old, sample, collected)
        mx.eval(surface)
    same(surface, reference(energy, position, old, sample, collected), 1e-4)


@backends
def test_a_broken_energy_or_position_shows(where: str) -> None:
    """A NaN energy reaches the surface, so that training stops; a NaN position goes to the first cell, not out of bounds."""
    energy, position, *others = arguments(1, 6)
    others[-1] = mx.ones((6,), dtype=mx.bool_)
    broken = mx.where(mx.arange(6)[:, None] == 2, float("nan"), energy)
    nowhere = mx.where(mx.arange(6)[:, None] == 2, float("nan"), position)
    size = {"batch": 1, "width": 3, "height": 2}
    with kernels_on(where):
        for given in ([broken, position], [energy, nowhere]):
            wanted = np.isnan(np.array(collect_reference(*given, *others, **size)))
            assert wanted.sum() == 1
            np.testing.assert_array_equal(np.isnan(np.array(collect(*given, *others, **size, kernels=True))), wanted)


@methods
def test_gradient_equals_float64_differences(method: str) -> None:
    energy, position, age, sample, _ = arguments(2, 4, seed=3)
    age_64, sample_64 = np.array(age), np.array(sample)
    width, height = 4, 3
    everyone = mx.ones((8,), dtype=mx.bool_)
    position = position * 0.97  # off the walls and the centre planes, where slopes jump

    def formula(e: np.ndarray, p: np.ndarray) -> np.ndarray:
        mass = np.exp(np.abs(e[:, 0]) / (2 - np.abs(p[:, 2])) * (1 + 0.1 * age_64))
        x, y = (p[:, 0] + 1) / 2 * (width - 1), (p[:, 1] + 1) / 2 * (height - 1)
        total, summed, shares = (np.zeros((2, height, width)) for _ in range(3))
        for i in range(8):
            for row in range(height):
                for column in range(width):
                    share = max(0, 1 - abs(x[i] - column)) * max(0, 1 - abs(y[i] - row))
                    if method == "nearest":
                        share = float(round(x[i]) == column and round(y[i]) == row)
                    total[sample_64[i], row, column] += share * mass[i]
                    summed[sample_64[i], row, column] += share * mass[i] * e[i, 0]
                    shares[sample_64[i], row, column] += share
        mean = summed / np.where(total > 0, total, 1)
        return (mean * np.minimum(shares, 1)).reshape(2, -1)

    cotangent = mx.array(np.random.default_rng(1).standard_normal((2, 12)).astype(np.float32))
    wanted = finite_difference_vjp(formula, [energy, position], cotangent)

    def kernel(e: mx.array, p: mx.array) -> list[mx.array]:
        return [collect(e, p, age, sample, everyone, batch=2, width=4, height=3, method=method, kernels=True)]

    with metal_on_cpu(caches=[build]):
        _, actual = mx.vjp(kernel, [energy, position], [cotangent])
        mx.eval(actual)
    for a, w in zip(actual, wanted, strict=True):
        same(a, mx.array(w.astype(np.float32)), 2e-5)


@methods
def test_the_same_bits_in_any_order_of_threads(method: str) -> None:
    given = arguments(2, 300)
    given[2] = 60 * given[2]  # masses of many magnitudes: every order of additions gives other bits
    crowded = [given[0], 0.3 * given[1], *given[2:]]
    results = {True: [], False: []}
    for deterministic, surfaces in results.items():
        for seed in (0, 1, 2):
            with kernels_on(HARNESS, seed):
                surface = collect(
                    *crowded, batch=2, width=20, height=18, method=method, deterministic=deterministic, kernels=True
                )
                mx.eval(surface)
            surfaces.append(np.array(surface))
    assert all(np.array_equal(results[True][0], other) for other in results[True][1:])
    assert any(not np.array_equal(results[False][0], other) for other in results[False][1:])


def check(method: str, deterministic: bool) -> Callable[[], None]:
    given = arguments(2, 300, in_order=not deterministic)
    cotangent = mx.array(np.random.default_rng(1).standard_normal((2, 33 * 34)).astype(np.float32))
    size = {"batch": 2, "width": 33, "height": 34, "method": method}

    def run() -> None:
        wanted, dw = mx.vjp(lambda *a: [collect_reference(*a, *given[2:], **size)], given[:2], [cotangent])
        kernel = partial(collect, **size, deterministic=deterministic, kernels=True)
        out, d = mx.vjp(lambda *a: [kernel(*a, *given[2:])], given[:2], [cotangent])
        mx.eval(out, d)
        for a, w in zip([*out, *d], [*wanted, *dw], strict=True):
            same(a, w, 2e-5)

    return run


def test_broken_walks_are_noticed() -> None:
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    edits = [
        (f"{barrier}\n        uint slot", "uint slot"),
        (f"{barrier}\n        for (uint entry", "for (uint entry"),
        ("bool touches = i < end && ", "bool touches = "),
        (" && sample[i] == row", ""),
        ("if (own + k >= CELLS) continue;", ""),
        ("if (i + 1 == flows || ", "if ("),
        ("uint slot = inclusive - 1,", "uint slot = inclusive,"),
        ("place.cell + REACH >= base", "place.cell >= base"),
        ("first >= own + EACH", "first >= own + 1"),
        ("first + REACH < own", "first + W < own"),
        ("offset == 1 ? 1 : offset == W ? 2", "offset == 1 ? 2 : offset == W ? 1"),
        ("(share_sum < 1.0f ? cotangent", "(share_sum < 0.5f ? cotangent"),
        ("d_x *= 0.5f * float(W - 1);", "d_x *= 0.5f * float(H - 1);"),
    ]
    assert not survivors(check("bilinear", True), edits, caches=[build])


def test_broken_scatters_are_noticed() -> None:
    edits = [
        ("if (i >= uint(sample_shape[0]) || !collected[i]) return;", "if (!collected[i]) return;"),
        ("if (cell >= uint(sums_shape[0])) return;", ""),
        ("uint first = uint(sample[i] * (W * H) + place.cell);\n    for", "uint first = uint(place.cell);\n    for"),
        ("add_to(sums, at + 1, mass * share * value);", "add_to(sums, at, mass * share * value);"),
        ("if (i >= uint(sample_shape[0])) return;", ""),
        ("value - mean : value;", "value : value;"),
    ]
    assert not survivors(check("nearest", False), edits, caches=[build])
