"""Clamp and sanitise: torch's values, torch's gradients."""

import mlx.core as mx
import numpy as np
import torch

from energy_flow_mlx.ops.numerics import clamp, sanitise

EDGES = np.array([-3, -1, -0.5, 0, 1, 2, np.inf, -np.inf], dtype=np.float32)


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
