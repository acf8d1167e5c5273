"""spawn's kernel against its reference: the same slots, for any number of flows, in any order of threads; and mutants."""

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import survivors

from energy_flow_mlx.ops.kernel import build
from energy_flow_mlx.ops.spawn import Births, spawn, spawn_reference

from .kernel_parity import HARNESS, backends, kernels_on

kernel = partial(spawn, kernels=True)


def arguments(batch: int, flows: int, slots: int, seed: int = 0) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    return [
        mx.array(rng.uniform(0, 1.2, (batch, flows)).astype(np.float32)),
        mx.array(rng.random((batch, flows)) < 0.7),
        mx.array(rng.integers(0, slots + 1, batch).astype(np.int32) // 2),
        mx.array(rng.integers(-1, 2 * slots, batch).astype(np.int32)),
    ]


def calls() -> list[tuple[Callable[..., Any], list[mx.array]]]:
    """What the CUDA compiler is shown."""
    return [(partial(kernel, slots=9, threshold=0.25, most=3), arguments(2, 20, 9))]


def assert_same(actual: Births, wanted: Births) -> None:
    for name, a, w in zip(Births._fields, actual, wanted, strict=True):
        assert a.dtype == w.dtype and a.shape == w.shape, name
        np.testing.assert_array_equal(np.array(a), np.array(w), err_msg=name)


@backends
@pytest.mark.parametrize(
    ("batch", "flows", "slots", "most"),
    [(1, 1, 1, 1), (3, 2, 4, 2), (2, 128, 40, 3), (2, 129, 300, 1), (64, 5, 3, 2), (2, 1500, 700, 3), (1, 4500, 9000, 2)],
)
def test_kernel_equals_reference(where: str, batch: int, flows: int, slots: int, most: int) -> None:
    given = arguments(batch, flows, slots)
    settings = {"slots": slots, "threshold": 0.25, "most": most}
    wanted = spawn_reference(*given, **settings)
    with kernels_on(where):
        births = kernel(*given, **settings)
        mx.eval(births)
    assert_same(births, wanted)


@backends
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_16_bit_lengths(where: str, dtype: mx.Dtype) -> None:
    length, *others = arguments(2, 50, 30)
    length = length.astype(dtype)
    with kernels_on(where):
        births = kernel(length, *others, slots=30, threshold=0.25, most=3)
        mx.eval(births)
    assert_same(births, spawn_reference(length.astype(mx.float32), *others, slots=30, threshold=0.25, most=3))


@backends
def test_odd_lengths_leave_what_the_reference_leaves(where: str) -> None:
    lengths = mx.array([[0.0, 0.25, 0.5, float("inf"), float("nan"), -1.0, 0.75]])
    may = mx.ones((1, 7), dtype=mx.bool_)
    none, ten = mx.array([0]), mx.array([10])
    with kernels_on(where):
        births = kernel(lengths, may, none, ten, slots=8, threshold=0.25, most=3)
    assert births.parent.tolist() == [[2, 3, 3, 3, 6, 6, -1, -1]]
    assert_same(births, spawn_reference(lengths, may, none, ten, slots=8, threshold=0.25, most=3))


def test_the_same_slots_in_any_order_of_threads() -> None:
    given = arguments(2, 300, 150)
    wanted = spawn_reference(*given, slots=150, threshold=0.25, most=3)
    for seed in (1, 2):
        with kernels_on(HARNESS, seed):
            births = kernel(*given, slots=150, threshold=0.25, most=3)
            mx.eval(births)
        assert_same(births, wanted)


def test_it_stands_inside_a_checkpointed_step() -> None:
    """No gradient is asked of the kernel, though the lengths it reads depend on the weights."""
    given = arguments(1, 6, 4)

    def loss(scale: mx.array) -> mx.array:
        def step(scale: mx.array, taken: mx.array) -> tuple[mx.array, mx.array]:
            length = given[0] * scale
            births = kernel(length, given[1], taken, given[3], slots=4, threshold=0.25, most=2)
            return mx.sum(length[0, mx.maximum(births.parent[0], 0)]), taken + births.born

        value, _ = mx.checkpoint(step)(scale, given[2])
        return value

    with kernels_on(HARNESS):
        slope = mx.grad(loss)(mx.array(1.0)).item()
    births = spawn_reference(*given, slots=4, threshold=0.25, most=2)
    assert slope == pytest.approx(mx.sum(given[0][0, mx.maximum(births.parent[0], 0)]).item(), rel=1e-5)


def test_broken_kernels_are_noticed() -> None:
    given = arguments(2, 4200, 400)  # more than one chunk
    given[2:] = [mx.array([3, 20]), mx.array([9000, 100])]
    wanted = spawn_reference(*given, slots=400, threshold=0.25, most=3)

    def check() -> None:
        births = kernel(*given, slots=400, threshold=0.25, most=3)
        mx.eval(births)
        assert_same(births, wanted)

    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    edits = [
        (f"{barrier}\n        uint number", "uint number"),
        (f"{barrier}\n    }}", "}"),
        ("if (slot < limit)", ""),
        ("flow < end && spawning[flow]", "spawning[flow]"),
        ("before += sums[other];", ""),
        ("if (other < simdgroup_index_in_threadgroup)", "if (other <= simdgroup_index_in_threadgroup)"),
        ("if (int(slot) < first || int(slot) >= first + lives)", "if (int(slot) >= first + lives)"),
        ("slot < SLOTS; slot +=", "slot <= SLOTS; slot +="),
        ("PER + k - begin", "PER + k"),
    ]
    assert not survivors(check, edits, caches=[build])
