"""The mutation check catches a wrong index, a missing barrier and a missing bound test, and lets correct kernels pass."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from . import KernelCompileError, examples, mutants, mutation_outcomes, survivors

RNG = np.random.default_rng(3)


def check_tree_sum() -> None:
    x = RNG.standard_normal(100).astype(np.float32)
    wanted = np.pad(x.astype(np.float64), (0, 28)).reshape(2, 64).sum(1)
    np.testing.assert_allclose(np.array(examples.tree_sum(mx.array(x))), wanted, atol=1e-4)


def check_gated() -> None:
    x, g, c = (mx.array(RNG.standard_normal(45), mx.float32) for _ in range(3))
    (y,), gradients = mx.vjp(examples.gated, [x, g], [c])
    (wanted,), reference = mx.vjp(examples.gated_reference, [x, g], [c])
    for ours, theirs in zip([y, *gradients], [wanted, *reference], strict=True):
        np.testing.assert_allclose(np.array(ours), np.array(theirs), atol=1e-6)


def test_wrong_index_missing_barrier_missing_bound_test() -> None:
    edits = [
        ("tile[t + half_width]", "tile[t + half_width - 1]"),
        ("tile[t + half_width]", "tile[t + half_width * 2]"),
        ("threadgroup_barrier(mem_flags::mem_threadgroup); // after the step", ""),
        ("i < n[0] ? x[i] : 0.0f", "x[i]"),
        ("if (t == 0) y", "y"),
        ("half_width /= 2", "half_width /= 4"),
    ]
    outcomes = mutation_outcomes(check_tree_sum, edits)
    assert [o.how for o in outcomes] == ["fault", "fault", "fault", "fault", "fault", "result"], outcomes
    assert "of 'tile'" in outcomes[2].message and "element 100 of 'x' is read" in outcomes[3].message


def check_prefix_sum() -> None:
    x = RNG.integers(0, 9, 700).astype(np.uint32)
    np.testing.assert_array_equal(np.array(examples.prefix_sum(mx.array(x))), np.cumsum(x) - x)


def check_row_sum() -> None:
    x = RNG.standard_normal((3, 200)).astype(np.float32)
    np.testing.assert_allclose(np.array(examples.row_sum(mx.array(x))), x.astype(np.float64).sum(1), atol=1e-4)


def test_each_barrier_and_bound_of_the_scans() -> None:
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);"
    edits = [
        (f"{barrier}\n    if (warp == 0)", "if (warp == 0)"),
        (f"{barrier} // offsets", "// offsets"),
        ("if (lane == 31) totals", "if (lane == 30) totals"),
        ("lane < simdgroups_per_threadgroup ?", "lane <= simdgroups_per_threadgroup ?"),
        ("t < n[0] ? x[t]", "t <= n[0] ? x[t]"),
        ("if (t < n[0]) y[t]", "y[t]"),
    ]
    assert survivors(check_prefix_sum, edits) == []
    edits = [
        (barrier, ""),
        ("row * width + column", "row + width * column"),
        ("lane < GROUP / 32 ?", "lane < 32 ?"),
        ("column < width;", "column <= width;"),
    ]
    assert survivors(check_row_sum, edits) == []


def test_forward_and_backward_of_a_public_op() -> None:
    edits = [
        ("y[i] = T(float(x[i]) * gate)", "y[i] = T(float(x[0]) * gate)"),
        ("dx[i] = T(dy * gate)", "dx[i] = T(gate)"),
        ("gate * (1.0f - gate)", "gate"),
        ("uint(x_shape[0])", "uint(x_shape[0]) + 1"),
    ]
    assert survivors(check_gated, edits) == []


def test_a_survivor_is_named() -> None:
    harmless = ("1.5f + 0.25f", "1.5f + 0.5f * 0.5f")
    blind = ("1.5f", "1.25f")

    def check() -> None:
        assert mx.allclose(examples.affine(mx.zeros((40,))), mx.full((40,), 0.25))

    assert survivors(check, [harmless, blind, ("0.25f", "0.5f")]) == [harmless, blind]


def test_a_mutant_that_does_not_compile_is_no_proof() -> None:
    with pytest.raises(KernelCompileError):
        mutation_outcomes(check_tree_sum, [("half_width /= 2", "half_width /= nothing")])


def test_mutants_of_a_source() -> None:
    made = mutants("a + b + c", [("a", "x"), ("b + c", "b")])
    assert [m.source for m in made] == ["x + b + c", "a + b"]
    with pytest.raises(ValueError, match="occurs 2 times"):
        mutants("a + a", [("a", "b")])
