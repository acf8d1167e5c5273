"""Clamping and sanitising with torch's gradients."""

import mlx.core as mx


def clamp(x: mx.array, low: float, high: float) -> mx.array:
    """x limited to [low, high]. Gradient 1 inside and at the bounds, 0 beyond.

    torch.clamp passes the gradient at the bound; mx.clip does not, so a flow that touches a wall would stop learning there.
    NaN passes through.
    """
    outside = (x < low) | (x > high)
    return mx.where(outside, mx.stop_gradient(mx.clip(x, low, high)), x)


def sanitise(x: mx.array, bound: float) -> mx.array:
    """NaN -> 0, +-inf -> +-10, then clamped to +-bound. No gradient where x was replaced."""
    x = mx.where(mx.isnan(x), 0.0, x)
    x = mx.where(mx.isinf(x), mx.stop_gradient(mx.sign(x)) * 10.0, x)
    return clamp(x, -bound, bound)
