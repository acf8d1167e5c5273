"""A flow's life: the loop over its steps, and the ways to its gradients.

`live` is the loop. Differentiated as it is, autodiff keeps what every step made; around `recomputed(step)` it keeps each step's
inputs alone; `live_by_hand` runs the same loop and goes back through it with `FlowStep.backward`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from ..ops import checkpoint
from ..ops.differentiable import own_backward
from .lattice import FlowState
from .step import FlowGradients, FlowStep, StepTrace, StepWeights, weight_gradients

Step = Callable[[StepWeights, FlowState, mx.array | None, mx.array], tuple[FlowState, StepTrace | None]]
Tree = TypeVar("Tree")


def live(
    step: Step,
    weights: StepWeights,
    flows: FlowState,
    noises: Sequence[mx.array | None],
    scale: mx.array,
    *,
    traces: list[Any] | None = None,
    stop: Callable[[int, FlowState], bool] | None = None,
) -> FlowState:
    """The flows after all their steps.

    Args:
        noises: of each step, [N, 3] or None; their number is that of the steps.
        scale: [1], factor on displacements.
        traces: a list that takes the trace of each step.
        stop: asked after each step, with the number of steps done; True ends the loop.
    """
    for done, noise in enumerate(noises, 1):
        flows, trace = step(weights, flows, noise, scale)
        if traces is not None:
            traces.append(trace)
        if stop is not None and stop(done, flows):
            break
    return flows


def recomputed(step: Step) -> Step:
    """`step`, recomputed in the backward pass: only its inputs are kept."""

    def run(
        weights: StepWeights, flows: FlowState, noise: mx.array | None, scale: mx.array
    ) -> tuple[FlowState, None]:
        # The backward pass sees positional arguments alone; weights that the function closes over would get zero gradients.
        # The noise has no gradient, and comes from outside: drawn inside, it would be drawn anew when the step is recomputed.
        def outputs(*arrays: mx.array) -> list[mx.array]:
            own_weights, own_flows = _unflatten((weights, flows), arrays)
            return _flatten(step(own_weights, own_flows, noise, scale)[0])

        return _unflatten(flows, checkpoint.recomputed(outputs)(*_flatten((weights, flows)))), None

    return run


class _Segment(NamedTuple):
    """Some steps in a row, as the forward pass leaves them: the flows before the first, and the traces if they are kept."""

    first: int
    before: FlowState
    traces: list[StepTrace] | None


def live_by_hand(
    step: FlowStep,
    weights: StepWeights,
    start: FlowState,
    noises: Sequence[mx.array | None],
    scale: mx.array,
    *,
    recompute: int = 0,
) -> FlowState:
    """`live` with its backward pass written by hand; differentiable once, in the weights and in `start.energy`.

    Args:
        recompute: 0 keeps the traces of all steps; k keeps the flows before every k-th step, and computes k steps again at a time.

    Returns:
        The flows after the last step, without hidden states.
    """
    length = recompute or len(noises)
    segments: list[_Segment] = []

    @mx.custom_function
    def life(energy: mx.array, *arrays: mx.array) -> list[mx.array]:
        flows, own = start._replace(energy=energy), _unflatten(weights, arrays)
        for first in range(0, len(noises), length):
            traces: list[StepTrace] | None = None if recompute else []
            segments.append(_Segment(first, flows, traces))
            with own_backward():
                flows = live(step, own, flows, noises[first : first + length], scale, traces=traces)
        return _flatten(flows._replace(hidden=()))

    @life.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        own = _unflatten(weights, primals[1:])
        d, sums = FlowGradients(cotangents[0], cotangents[1], None), None
        while segments:  # popped, so that a step's arrays are free once its gradients are there
            first, flows, traces = segments.pop()
            if traces is None:
                # Recomputed when the backward pass arrives, not before: flows and hidden states depend on the gradients. Without the
                # hidden states' dependence MLX could compute the products of all segments at once.
                position, *hidden = mx.depends([flows.position, *flows.hidden], [d.position, d.energy])
                flows, traces = flows._replace(position=position, hidden=tuple(hidden)), []
                with own_backward():
                    live(step, own, flows, noises[first : first + length], scale, traces=traces)
            while traces:
                d, sums = step.backward(own, traces.pop(), d, scale, sums)
        assert sums is not None
        return d.energy, *_flatten(weight_gradients(own, sums))

    function: Any = life
    return _unflatten(start._replace(hidden=()), function(start.energy, *_flatten(weights)))


def _flatten(tree: Any) -> list[mx.array]:
    """The arrays of nested tuples and lists, in order."""
    return [array for _, array in cast(list[tuple[str, mx.array]], tree_flatten(tree))]


def _unflatten(like: Tree, arrays: Sequence[mx.array]) -> Tree:
    """The inverse of `_flatten`: `arrays` in the structure of `like`."""
    rest = iter(arrays)
    tree: Tree = tree_map(lambda _: next(rest), like)
    return tree
