"""Kernels as differentiable functions, and a way to do without where a function around them has a backward pass of its own."""

from collections.abc import Callable, Iterator, Sequence
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


def by_numpy(forward: Callable[..., Any], backward: Callable[..., Sequence[mx.array]]) -> Callable[..., Any]:
    """`forward` as a function that is differentiable once, where both compute by NumPy.

    Autodiff takes what NumPy computes for constants: asked for more than a vjp, it raises instead of leaving gradients out.

    Args:
        forward: arrays to an array or a list of them.
        backward: cotangents and then the arrays of `forward` to the gradients of these.

    Returns:
        The function. It raises NotImplementedError where it is differentiated twice or in forward mode.
    """

    @mx.custom_function
    def function(*arrays: mx.array) -> Any:
        return forward(*arrays)

    @function.vjp
    def vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        primals = primals if isinstance(primals, tuple) else (primals,)
        cotangents = (cotangents,) if isinstance(cotangents, mx.array) else cotangents
        return once(backward(*cotangents, *primals), primals)

    function.jvp(_refuse)
    guarded: Callable[..., Any] = function
    return guarded


def once(gradients: Sequence[mx.array], primals: Sequence[mx.array]) -> tuple[mx.array, ...]:
    """Gradients that are constants to MLX, so that differentiating them by `primals` raises NotImplementedError."""
    # A corner of each: while MLX differentiates, an array keeps what it was made from, and all of a backward pass would stay.
    corners = [primal[(slice(0, 1),) * primal.ndim] for primal in primals]
    return tuple(_guarded(*gradients, *corners)[: len(gradients)])


def _guard(*arrays: mx.array) -> list[mx.array]:
    return list(arrays)


def _refuse(*_: Any) -> Any:
    raise NotImplementedError("computed by NumPy this has a gradient and no other derivative; ENERGY_FLOW_KERNELS=off takes a form that has")


_guarded: Any = mx.custom_function(_guard)
_guarded.jvp(_refuse)
_guarded.vjp(_refuse)
