"""Kernels as differentiable functions, and a way to do without where a function around them has a backward pass of its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

_own: list[bool] = []  # holds something inside own_backward


@contextmanager
def own_backward() -> Iterator[None]:
    """Inside, ops run without their vjp: for the forward pass of a `mx.custom_function` whose vjp is written for all of them.

    Each vjp is a node of MLX's graph, which costs host time and changes the order in which a step's arrays are freed: of a training
    step of the experiment preset it took 9 % more memory.
    """
    _own.append(True)
    try:
        yield
    finally:
        _own.pop()


class Differentiable:
    """`mx.custom_function` of `forward`, or `forward` itself inside `own_backward`."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward: Any = forward
        self._with_vjp: Any = mx.custom_function(forward)

    def vjp(self, function: Callable[..., Any]) -> Any:
        """Register the vjp, as `mx.custom_function` does; a decorator."""
        return self._with_vjp.vjp(function)

    def __call__(self, *arrays: mx.array) -> Any:
        return (self._forward if _own else self._with_vjp)(*arrays)
