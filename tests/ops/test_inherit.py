"""inherit: kernel against reference and a plain loop, float64 differences, determinism, and mutants."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import finite_difference_vjp, metal_on_cpu, survivors

from energy_flow_mlx.ops.inherit import inherit, inherit_gradient, inherit_reference
from energy_flow_mlx.ops.kernel import build
from energy_flow_mlx.ops.spawn import Births, spawn_reference

from .kernel_parity import HARNESS, backends, compare, kernels_on, same


def arguments(batch: int, cells: int, children: int, size: int) -> list[mx.array]:
    """Rows, and the births of a step in which every sample has another number of children."""
    slots = cells + children
    rng = np.random.default_rng(slots + size)
    taken = rng.integers(0, children + 1, batch) // 2
    in_use = np.arange(slots) < cells + taken[:, None]
    length = mx.array(rng.uniform(0, 1.2, (batch, slots)).astype(np.float32))
    room = mx.array(rng.integers(0, 2 * children + 1, batch).astype(np.int32))
    births = spawn_reference(
        length, mx.array(in_use), mx.array(taken.astype(np.int32)), room, slots=children, threshold=0.25, most=3
    )
    rows = [mx.array(rng.standard_normal((batch * slots, size)).astype(np.float32)) for _ in range(2)]
    return [*rows, *births]


def of_arrays(function: Callable[..., Any], **options: Any) -> Callable[..., mx.array]:
    """`function` of arrays alone."""
    return lambda own, inherited, *births: function(own, inherited, Births(*births), **options)


kernel = of_arrays(inherit, kernels=True)
reference = of_arrays(inherit_reference)
SHAPES = [(1, 1, 1, 1), (3, 2, 4, 3), (2, 9, 7, 4), (2, 3, 2, 6), (5, 30, 20, 8), (1, 400, 300, 5)]


@backends
@pytest.mark.parametrize(("batch", "cells", "children", "size"), SHAPES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_kernel_equals_reference(
    where: str, batch: int, cells: int, children: int, size: int, dtype: mx.Dtype
) -> None:
    compare(where, kernel, reference, arguments(batch, cells, children, size), dtype=dtype)


@backends
@pytest.mark.parametrize("kernels", [True, False])
def test_gradients_together_and_apart(where: str, kernels: bool) -> None:
    own, inherited, *births = arguments(3, 9, 7, 4)
    cotangent = mx.array(np.random.default_rng(1).standard_normal(own.shape).astype(np.float32))
    _, (stays, passed) = mx.vjp(lambda *rows: [reference(*rows, *births)], [own, inherited], [cotangent])
    with kernels_on(where):
        for options, wanted in [
            ({}, stays + passed),
            ({"passes": False}, stays),
            ({"stays": False}, passed),
        ]:
            same(inherit_gradient(cotangent, Births(*births), **options, kernels=kernels), wanted, 1e-6)


def test_reference_is_the_loop() -> None:
    own, inherited, *births = arguments(3, 5, 6, 2)
    wanted = np.array(own)
    for sample, parents in enumerate(births[0].tolist()):
        for child, parent in enumerate(parents):
            if parent >= 0:
                wanted[sample * 11 + 5 + child] = np.array(inherited)[sample * 11 + parent]
    assert not np.array_equal(wanted, np.array(own))
    assert np.array_equal(np.array(reference(own, inherited, *births)), wanted)


def test_gradient_equals_float64_differences() -> None:
    own, inherited, *births = arguments(2, 3, 4, 2)
    cotangent = mx.array(np.random.default_rng(1).standard_normal(own.shape).astype(np.float32))
    parent = np.array(births[0])
    source = (np.arange(2)[:, None] * 7 + np.maximum(parent, 0)).reshape(-1)
    lives = np.concatenate([np.zeros((2, 3), dtype=bool), parent >= 0], axis=1).reshape(-1, 1)

    def formula(own: np.ndarray, inherited: np.ndarray) -> np.ndarray:
        rows = inherited[source].reshape(2, 4, -1)
        spread = np.concatenate([np.zeros((2, 3, 2)), rows], axis=1).reshape(own.shape)
        return np.where(lives, spread, own)

    wanted = finite_difference_vjp(formula, [own, inherited], cotangent)
    with metal_on_cpu(caches=[build]):
        _, actual = mx.vjp(lambda *rows: [kernel(*rows, *births)], [own, inherited], [cotangent])
        mx.eval(actual)
    for a, w in zip(actual, wanted, strict=True):
        same(a, mx.array(w.astype(np.float32)), 1e-5)


def test_it_stands_inside_a_checkpointed_step() -> None:
    own, inherited, *births = arguments(2, 3, 4, 2)

    def slopes(function: Callable[..., mx.array], checkpointed: bool) -> mx.array:
        def step(own: mx.array, *numbers: mx.array) -> mx.array:
            return mx.sum(mx.square(function(own, inherited, *numbers)))

        return mx.grad(mx.checkpoint(step) if checkpointed else step)(own, *births)

    with kernels_on(HARNESS):
        same(slopes(kernel, checkpointed=True), slopes(reference, checkpointed=False), 1e-5)


def test_the_same_bits_in_any_order_of_threads() -> None:
    own, _, *births = arguments(2, 40, 33, 5)
    results = []
    for seed in (0, 1, 2):
        with kernels_on(HARNESS, seed):
            results.append(inherit_gradient(own, Births(*births), kernels=True))
            mx.eval(results[-1])
    assert mx.array_equal(results[0], results[1]) and mx.array_equal(results[0], results[2])


def test_broken_kernels_are_noticed() -> None:
    own, inherited, *births = arguments(5, 30, 20, 5)
    births[0][-1] = mx.arange(20)  # every child slot of the last sample: beyond them the array ends
    births[1][-1], births[3][-1] = 20, 0

    def check() -> None:
        wanted, dw = mx.vjp(lambda *rows: [reference(*rows, *births)], [own, inherited], [own])
        out, d = mx.vjp(lambda *rows: [kernel(*rows, *births)], [own, inherited], [own])
        mx.eval(out, d)
        for a, w in zip([*out, *d], [*wanted, *dw], strict=True):
            same(a, w, 2e-5)

    edits = [
        ("if (row >= uint(own_shape[0])) return;", ""),
        ("if (row >= uint(cotangent_shape[0])) return;", ""),
        ("slot < cells ? -1 : parent[sample * children + slot - cells]", "parent[sample * children + slot % children]"),
        ("(sample * slots + uint(from))", "uint(from)"),
        ("slot >= cells + begin", "slot >= cells"),
        ("slot < cells + end", "slot <= cells + end"),
        ("parent[sample * children + middle] < int(slot)", "parent[sample * children + middle] <= int(slot)"),
        ("low < end && parent", "parent"),
        ("== int(slot); ++low", "== int(slot); low += 2"),
        ("(sample * slots + cells + low)", "(sample * slots + low)"),
    ]
    assert not survivors(check, edits, caches=[build])
