"""All moves of all flows as one differentiable function, for the kernels.

Left to autodiff, a step adds the gradients of two dozen weights to those of the steps after it, one launch each, and MLX may leave
the products that make them for last, and keep the gates' gradients of every step and layer for them. Here
the backward pass is a loop of its own: sums run on inside the kernels and products, and a step's arrays are gone before the next.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import mlx.core as mx

from ..ops import advance, gru_gates, heads
from ..ops.neuron import NeuronKernel
from ..ops.spawn import Births
from .carrier import CarrierWeights
from .lattice import FlowState


class StepSizes(NamedTuple):
    """What a step needs beside arrays."""

    neuron: NeuronKernel
    bound: float | None  # of the hidden state
    width: int
    height: int
    reflection: bool


class Kept(NamedTuple):
    """What the backward pass of a step needs."""

    before: FlowState
    x: mx.array  # [N, padded]
    products: list[tuple[mx.array, mx.array]]  # of each layer: input gates, hidden gates
    hidden: tuple[mx.array, ...]  # after the step
    inner: mx.array
    energy: mx.array  # of the heads
    displacement: mx.array
    noise: mx.array | None


class Transposed(NamedTuple):
    """The weights of the products as the products take them: of each layer for input and hidden state, and of the heads. Made once
    for all steps: even a view costs MLX's graph a node."""

    layers: list[tuple[mx.array, mx.array]]
    inner: mx.array

    @classmethod
    def of(cls, weights: CarrierWeights) -> "Transposed":
        return cls([(layer.input.T, layer.hidden.T) for layer in weights.layers], weights.inner.T)


def forward_step(
    sizes: StepSizes,
    packed: mx.array,
    weights: CarrierWeights,
    transposed: Transposed,
    flows: FlowState,
    noise: mx.array | None,
    scale: mx.array,
) -> tuple[advance.Move, Kept]:
    """One move of the active flows, and what its backward pass needs."""
    x = first = sizes.neuron.forward(flows.position, flows.energy, packed)
    hidden, products = [], []
    for layer, (of_input, of_hidden), state in zip(weights.layers, transposed.layers, flows.hidden, strict=True):
        gates = x @ of_input, state @ of_hidden
        x = gru_gates.forward(
            *gates, layer.bias, layer.hidden_bias, state, flows.active, masked=True, bound=sizes.bound
        )
        hidden.append(x)
        products.append(gates)
    inner = x @ transposed.inner
    energy, displacement = heads.forward(inner, *weights[2:], scale)
    move = advance.forward(
        displacement,
        energy,
        flows.position,
        flows.energy,
        noise,
        flows.active,
        flows.age,
        width=sizes.width,
        height=sizes.height,
        reflection=sizes.reflection,
    )
    return move, Kept(flows, first, products, tuple(hidden), inner, energy, displacement, noise)


class Cotangents(NamedTuple):
    """Gradients with respect to the flows. hidden: None after the last step, whose hidden state nothing reads."""

    position: mx.array
    energy: mx.array
    hidden: tuple[mx.array, ...] | None


class Sums(NamedTuple):
    """Gradients of the weights so far, as the kernels sum them."""

    neuron: mx.array
    layers: list[tuple[mx.array, mx.array, mx.array]]  # of each layer: input, hidden, biases
    inner: mx.array
    heads: tuple[mx.array, mx.array]

    def arrays(self) -> list[mx.array]:
        """All of them."""
        return [self.neuron, *(array for layer in self.layers for array in layer), self.inner, *self.heads]


def backward_step(
    sizes: StepSizes,
    packed: mx.array,
    weights: CarrierWeights,
    kept: Kept,
    d: Cotangents,
    scale: mx.array,
    sums: Sums | None,
) -> tuple[Cotangents, Sums]:
    """The gradients before a step from those after it, and the sums with this step's gradients of the weights."""
    before = kept.before
    d_displacement, d_new_energy, d_position, d_energy = advance.backward(
        d.position, d.energy, kept.displacement, before.position, kept.noise, before.active, reflection=sizes.reflection
    )
    d_inner, head_sums = heads.backward(
        d_new_energy,
        d_displacement,
        kept.energy,
        kept.inner,
        weights.inner_bias,
        weights.energy_weight,
        weights.displacement_weight,
        scale,
        sums.heads if sums else None,
    )
    above = d_inner @ weights.inner
    inner = _product_sum(sums.inner if sums else None, d_inner, kept.hidden[-1])
    d_hidden: list[mx.array] = []
    layers: list[tuple[mx.array, mx.array, mx.array]] = []
    for number in reversed(range(len(weights.layers))):
        layer, state = weights.layers[number], before.hidden[number]
        old = sums.layers[number] if sums else (None, None, None)
        cotangent = d.hidden[number] if d.hidden else None
        d_input, d_gates, direct, biases = gru_gates.backward(
            above if cotangent is None else cotangent,
            *kept.products[number],
            layer.bias,
            layer.hidden_bias,
            state,
            before.active,
            masked=True,
            bound=sizes.bound,
            above=None if cotangent is None else above,
            running=old[2],
        )
        below = kept.hidden[number - 1] if number else kept.x
        above = d_input @ layer.input
        d_hidden.insert(0, mx.addmm(direct, d_gates, layer.hidden))
        layers.insert(0, (_product_sum(old[0], d_input, below), _product_sum(old[1], d_gates, state), biases))
    more_position, more_energy, neuron = sizes.neuron.backward(
        above, before.position, before.energy, packed, sums.neuron if sums else None
    )
    new = Sums(neuron, layers, inner, head_sums)
    position, energy = mx.depends([d_position + more_position, d_energy + more_energy], new.arrays())
    return Cotangents(position, energy, tuple(d_hidden)), new


def weight_gradients(weights: CarrierWeights, sums: Sums) -> list[mx.array]:
    """The gradients of the packed neuron and of `weights.flat()`."""
    gradients = [mx.sum(sums.neuron, axis=0)]
    for layer, (d_input, d_hidden, biases) in zip(weights.layers, sums.layers, strict=True):
        total, own = mx.sum(biases, axis=0), layer.bias.size
        gradients += [d_input, d_hidden, total[:own], total[own:]]
    return [*gradients, sums.inner, *heads.gradients_of_weights(sums.heads, weights.energy_weight.size)]


def _product_sum(total: mx.array | None, left: mx.array, right: mx.array) -> mx.array:
    """total + left.T @ right, in one product."""
    return left.T @ right if total is None else mx.addmm(total, left.T, right)


class AfterMove(Protocol):
    """What happens to flows between two moves: they arrive, are dropped, and leave children."""

    def after(self, before: FlowState, move: advance.Move, hidden: tuple[mx.array, ...]) -> tuple[FlowState, Births | None]:
        """The flows for the next step, and who was born."""

    def undo(self, births: Births, d: Cotangents) -> tuple[Cotangents, mx.array]:
        """Gradients before the births from those after them, and that of the positions before the move [N, 3]."""


def flow_life(
    sizes: StepSizes,
    packed: mx.array,
    weights: CarrierWeights,
    start: FlowState,
    noises: Sequence[mx.array | None],
    scale: mx.array,
    between: AfterMove,
    keep_every: int = 0,
) -> FlowState:
    """Move flows through all steps; differentiable once, in the weights and in `start.energy`.

    Args:
        packed: the neuron's weights, as `ops.neuron.pack` gives them.
        start: flows before the first step.
        noises: of each step, [N, 3] or None; their number is that of the steps.
        scale: [1], factor on displacements.
        keep_every: 0 keeps what the backward pass needs of every step; k keeps the flows before every k-th step, and computes the
            steps in between again.

    Returns:
        The flows after the last step, without hidden states.
    """
    segment = keep_every or len(noises)
    kept: list[Any] = []

    def run(packed: mx.array, weights: CarrierWeights, flows: FlowState, first: int) -> tuple[FlowState, list[Any]]:
        trace = []
        transposed = Transposed.of(weights)
        for noise in noises[first : first + segment]:
            move, needed = forward_step(sizes, packed, weights, transposed, flows, noise, scale)
            flows, births = between.after(flows, move, needed.hidden)
            trace.append((needed, births))
        return flows, trace

    @mx.custom_function
    def life(energy: mx.array, packed: mx.array, *arrays: mx.array) -> list[mx.array]:
        flows, whole = start._replace(energy=energy), CarrierWeights.of(arrays)
        for first in range(0, len(noises), segment):
            boundary = flows
            flows, trace = run(packed, whole, flows, first)
            kept.append(boundary if keep_every else trace)
        return flows._replace(hidden=()).flat()

    @life.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        packed, whole = primals[1], CarrierWeights.of(primals[2:])
        d, sums = Cotangents(cotangents[0], cotangents[1], None), None
        for first in reversed(range(0, len(noises), segment)):
            trace = kept.pop()  # so that a step's arrays are free once its gradients are there
            if keep_every:
                # Computed again when its turn comes, not before: the flows wait for the gradients that need them. So must the
                # hidden states: their products need nothing else, and those of all segments would be there at once.
                position, *hidden = mx.depends([trace.position, *trace.hidden], [d.position, d.energy])
                _, trace = run(packed, whole, trace._replace(position=position, hidden=tuple(hidden)), first)
            while trace:
                needed, births = trace.pop()
                more = None
                if births is not None:
                    d, more = between.undo(births, d)
                d, sums = backward_step(sizes, packed, whole, needed, d, scale, sums)
                if more is not None:
                    d = d._replace(position=d.position + more)
        assert sums is not None
        return d.energy, *weight_gradients(whole, sums)

    function: Any = life
    return FlowState.of(function(start.energy, packed, *weights.flat()))
