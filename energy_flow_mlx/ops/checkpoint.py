"""A function whose backward pass computes it again instead of keeping what it made."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx


def recomputed(function: Callable[..., list[mx.array]]) -> Callable[..., list[mx.array]]:
    """`function` over positional arrays, with only its arguments kept for the backward pass.

    `mx.checkpoint` may compute all functions of a chain again as soon as the forward pass is done, and then keeps as much as
    without it. Here a function waits for the gradients of its results, and lets go on only when all of its own are there: of a
    chain's weights, MLX would otherwise leave the products for last, and keep what they need.
    """

    @mx.custom_function
    def run(*arrays: mx.array) -> list[mx.array]:
        return function(*arrays)

    @run.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> Any:
        waiting = mx.depends(list(primals), list(cotangents))
        found = mx.vjp(function, waiting, list(cotangents))[1]
        return mx.depends(found, found)

    checkpointed: Any = run
    return checkpointed
