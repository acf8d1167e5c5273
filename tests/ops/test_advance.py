"""advance: kernel against reference, at the bounds too, and mutants."""

from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metal_cpu import survivors

from energy_flow_mlx.ops.advance import Move, advance, advance_reference, raw_move
from energy_flow_mlx.ops.kernel import build

from .kernel_parity import backends, compare, kernels_on


def arguments(flows: int, seed: int = 0, spread: float = 0.6) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    position = rng.uniform(-1, 1, (flows, 3))
    position[::3, 0] = 1.0  # on the wall
    displacement = spread * rng.standard_normal((flows, 3))
    displacement[::4] = 0.5  # at the bound, where torch's clamp passes the gradient
    floats = [displacement, rng.uniform(-1, 1, (flows, 1)), position, rng.uniform(-1, 1, (flows, 1)),
              0.3 * rng.standard_normal((flows, 3))]  # fmt: skip
    arrays = [mx.array(x.astype(np.float32)) for x in floats]
    return [*arrays, mx.array(rng.random(flows) < 0.8), mx.array(rng.integers(0, 5, flows), dtype=mx.int32)]


@backends
@pytest.mark.parametrize("flows", [1, 2, 7, 300])
@pytest.mark.parametrize("reflection", [True, False])
def test_kernel_equals_reference(where: str, flows: int, reflection: bool) -> None:
    kernel, reference = partial(advance, kernels=True), advance_reference
    compare(where, *(partial(f, reflection=reflection) for f in (kernel, reference)), arguments(flows))


@backends
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_displacements_and_no_noise(where: str, dtype: mx.Dtype) -> None:
    """Positions stay float32; only what the carrier gives is in 16 bits."""
    given = arguments(33)
    halves = [x.astype(dtype) for x in given[:2]]

    def with_floats(function: object) -> object:
        return lambda d, e: function(d, e, given[2], given[3], None, given[5], given[6], reflection=True)

    kernel = partial(advance, kernels=True)
    compare(where, with_floats(kernel), with_floats(advance_reference), halves, dtype=dtype)


@backends
def test_discrete_outputs_are_equal(where: str) -> None:
    given = arguments(400, seed=2)
    bad = np.array(given[0])
    bad[0], bad[1, 2], bad[2, 0] = np.nan, np.inf, -np.inf
    given[0] = mx.array(bad)
    wanted = advance_reference(*given, reflection=True)
    with kernels_on(where):
        move = advance(*given, reflection=True, kernels=True)
        mx.eval(move)
    ends = np.array(wanted.position)[np.array(wanted.terminated), 2]
    assert {-1, 1} == set(ends.tolist()) and not all(np.array(wanted.terminated))
    for name in Move._fields:
        a, w = np.array(getattr(move, name)), np.array(getattr(wanted, name))
        if w.dtype == np.float32:
            np.testing.assert_allclose(a, w, atol=2e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(a, w, err_msg=name)
    assert np.abs(np.array(move.position)).max() <= 1


def test_broken_kernels_are_noticed() -> None:
    edits = [
        ("if (i >= uint(active_shape[0])) return;\n    float from", "float from"),
        ("if (i >= uint(active_shape[0])) return;\n    bool on = active[i];\n    for", "bool on = active[i];\n    for"),
        ("moving[i] = on && !reached;", "moving[i] = on;"),
        ("to[2] >= 1.0f;", "to[2] > 1.0f;"),
        ("if (mirrored && replaced(raw, 1.0f)) d = -d;", ""),
        ("reached = to[2] <= -1.0f", "reached = to[2] < -1.0f"),
    ]
    assert not survivors(lambda: _check(), edits, caches=[build])


def _check() -> None:
    given = arguments(70, seed=3)
    wanted = advance_reference(*given, reflection=True)
    move = advance(*given, reflection=True, kernels=True)
    mx.eval(move)
    for a, w in zip(move, wanted, strict=True):
        np.testing.assert_allclose(np.array(a).astype(float), np.array(w).astype(float), atol=2e-7)

    def gradients(function: object, **options: object) -> list[mx.array]:
        def loss(d: mx.array, p: mx.array) -> list[mx.array]:
            return [function(d, given[1], p, *given[3:], reflection=True, **options).position]

        return mx.vjp(loss, [given[0], given[2]], [mx.ones((70, 3)) * mx.array([1.0, 2.0, 3.0])])[1]

    for a, w in zip(gradients(advance, kernels=True), gradients(advance_reference), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(w), atol=1e-6)




def move_of(displacement: mx.array, position: mx.array, noise: mx.array | None = None, **options: bool) -> Move:
    """A move of active flows that carry nothing."""
    flows = len(position)
    nothing = mx.zeros((flows, 1))
    active, age = mx.ones((flows,), dtype=mx.bool_), mx.zeros((flows,), dtype=mx.int32)
    return advance(displacement, nothing, position, nothing, noise, active, age, **options)


anything = st.floats(width=32, allow_nan=True, allow_infinity=True)
sixes = st.lists(st.tuples(*[anything] * 6), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(sixes, st.booleans())
def test_a_move_stays_in_the_lattice(values: list, reflection: bool) -> None:
    table = np.array(values, dtype=np.float32)
    displacement, noise = mx.array(table[:, :3]), mx.array(table[:, 3:])
    position = mx.array(np.random.default_rng(0).uniform(-1, 1, (len(table), 3)).astype(np.float32))
    move = move_of(displacement, position, noise, reflection=reflection)
    where = np.array(move.position)
    assert (np.abs(where) <= 1).all()
    assert np.array_equal(np.array(move.terminated), np.abs(where[:, 2]) >= 1)
    length = np.array(move.length)
    assert (length >= 0).all() and (length <= np.sqrt(12) + 1e-5).all()


def test_a_step_is_bounded_before_noise_and_measured_before_reflection() -> None:
    position, far = mx.array([[0.8, 0.0, 0.0]]), mx.array([[9.0, -9.0, 0.25]])
    np.testing.assert_allclose(np.array(raw_move(far, position)), [[1.3, -0.5, 0.25]], atol=1e-6)
    move = move_of(far, position, reflection=True)
    np.testing.assert_allclose(np.array(move.position), [[0.7, -0.5, 0.25]], atol=1e-6)
    np.testing.assert_allclose(move.length.item(), np.sqrt(0.2**2 + 0.5**2 + 0.25**2), rtol=1e-6)
    unreflected = move_of(far, position)
    np.testing.assert_allclose(np.array(unreflected.position), [[1.0, -0.5, 0.25]], atol=1e-6)
