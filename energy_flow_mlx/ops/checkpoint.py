"""A function whose backward pass computes it again instead of keeping what it made."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from .differentiable import once
from .host import detached, use_host


def recomputed(function: Callable[..., list[mx.array]]) -> Callable[..., list[mx.array]]:
    """`function` over positional arrays, with only its arguments kept for the backward pass.

    With `mx.checkpoint` MLX may recompute all functions of a chain as soon as the forward pass is done, which saves no memory.
    Here the recomputation depends on the gradients of the outputs, and the gradients that are passed on depend on all gradients of this
    function: MLX could otherwise postpone the products for the weights' gradients, and keep their inputs for all functions. Where ops compute
    by NumPy, both passes are computed here and now, and only copies leave them.
    """

    @mx.custom_function
    def run(*arrays: mx.array) -> list[mx.array]:
        outputs = function(*arrays)
        return [detached(output) for output in outputs] if use_host("checkpoint", None, arrays) else outputs

    @run.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> Any:
        if use_host("checkpoint", None, primals):
            return once([detached(gradient) for gradient in mx.vjp(function, list(primals), list(cotangents))[1]], primals)
        waiting = mx.depends(list(primals), list(cotangents))
        found = mx.vjp(function, waiting, list(cotangents))[1]
        return mx.depends(found, found)

    checkpointed: Any = run
    return checkpointed
