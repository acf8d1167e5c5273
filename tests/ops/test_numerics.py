"""Clamp, sanitise and advance: torch's values, torch's gradients, and never out of the lattice."""

import mlx.core as mx
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_flow_mlx.ops.advance import advance
from energy_flow_mlx.ops.numerics import clamp, sanitise

EDGES = np.array([-3, -1, -0.5, 0, 1, 2, np.inf, -np.inf], dtype=np.float32)
anything = st.floats(width=32, allow_nan=True, allow_infinity=True)
triples = st.lists(st.tuples(*[anything] * 6), min_size=1, max_size=8)


def test_clamp_is_torchs_with_its_gradient_at_the_bounds() -> None:
    x = torch.tensor(EDGES, requires_grad=True)
    expected = x.clamp(-1, 1)
    expected.sum().backward()
    assert np.array_equal(np.array(clamp(mx.array(EDGES), -1.0, 1.0)), expected.detach().numpy())
    gradient = mx.grad(lambda y: clamp(y, -1.0, 1.0).sum())(mx.array(EDGES))
    assert np.array_equal(np.array(gradient), x.grad.numpy())
    assert np.isnan(clamp(mx.array([float("nan")]), -1.0, 1.0).item())


def test_sanitise_replaces_and_clips_and_gives_finite_gradients() -> None:
    x = mx.array(np.append(EDGES, np.nan).astype(np.float32))
    assert sanitise(x, 10.0).tolist() == [-3, -1, -0.5, 0, 1, 2, 10, -10, 0]
    assert sanitise(x, 2.5).tolist() == [-2.5, -1, -0.5, 0, 1, 2, 2.5, -2.5, 0]
    gradient = mx.grad(lambda y: sanitise(y, 2.5).sum())(x)
    assert gradient.tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 0]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(triples, st.booleans())
def test_a_move_stays_in_the_lattice(values: list, reflection: bool) -> None:
    table = np.array(values, dtype=np.float32)
    displacement, noise = mx.array(table[:, :3]), mx.array(table[:, 3:])
    position = mx.array(np.random.default_rng(0).uniform(-1, 1, (len(table), 3)).astype(np.float32))
    move = advance(displacement, position, noise, reflection=reflection)
    where = np.array(move.position)
    assert (np.abs(where) <= 1).all()
    assert np.array_equal(np.array(move.terminated), np.abs(where[:, 2]) >= 1)
    length = np.array(move.length)
    assert (length >= 0).all() and (length <= np.sqrt(12) + 1e-5).all()


def test_a_step_is_bounded_before_noise_and_measured_before_reflection() -> None:
    position = mx.array([[0.8, 0.0, 0.0]])
    move = advance(mx.array([[9.0, -9.0, 0.25]]), position, reflection=True)
    np.testing.assert_allclose(np.array(move.raw), [[1.3, -0.5, 0.25]], atol=1e-6)
    np.testing.assert_allclose(np.array(move.position), [[0.7, -0.5, 0.25]], atol=1e-6)
    np.testing.assert_allclose(move.length.item(), np.sqrt(0.2**2 + 0.5**2 + 0.25**2), rtol=1e-6)
    unreflected = advance(mx.array([[9.0, -9.0, 0.25]]), position)
    np.testing.assert_allclose(np.array(unreflected.position), [[1.0, -0.5, 0.25]], atol=1e-6)
