"""Clamping and sanitising with torch's gradients."""

import functools
from typing import Any

import mlx.core as mx
import numpy as np

from . import host
from .differentiable import by_numpy


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


def sanitise_in_one_look(x: mx.array, bound: float) -> mx.array:
    """`sanitise`. On a CPU where `ops.host.use_host` says so, x itself if nothing is to be replaced, for which one look is enough; MLX
    would go through x a dozen times."""
    if not host.use_host("sanitise", None, x):
        return sanitise(x, bound)
    result: mx.array = _looked_at(bound)(x)
    return result


@functools.cache
def _looked_at(bound: float) -> Any:
    def forward(x: mx.array) -> mx.array:
        return x if host.within(host.read(x), bound) else sanitise(x, bound)

    def backward(cotangent: mx.array, x: mx.array) -> list[mx.array]:
        numbers = host.read(x)
        if host.within(numbers, bound):
            return [cotangent]
        return [mx.where(mx.array(np.abs(numbers) <= bound), cotangent, 0.0)]  # NaN is not

    return by_numpy(forward, backward)
