"""One step of all flows, and right below it its backward pass.

Evaluation, autodiff and recomputation run `FlowStep.__call__`; `live_by_hand` (life.py) runs it too and then `FlowStep.backward`.
Evaluation can have the step as one kernel: whole_step.py.
"""

from typing import Any, NamedTuple

import mlx.core as mx

from ..config import ModelConfig
from ..nn.gru import GRUWeights
from ..nn.precision import flow_dtype
from ..ops import gru_gates, heads
from ..ops.advance import Move, advance
from ..ops.advance import backward as advance_backward
from ..ops.inherit import inherit, inherit_gradient
from ..ops.kernel import use_kernel
from ..ops.neuron import NeuronKernel, neuron, pack, run_packed, wanted
from ..ops.spawn import Births, spawn
from ..place import whole
from .carrier import CarrierWeights, EnergyCarrier, HeadWeights, hidden_bounds, input_size, recur, steer
from .lattice import FlowState
from .neuron import SimpleNeuron


class StepWeights(NamedTuple):
    """What all steps of a life read. neuron: its twelve parameters, or one vector that packs them for the kernel."""

    neuron: list[mx.array]
    carrier: CarrierWeights


class StepTrace(NamedTuple):
    """What the backward pass of a step reads. M = Hd / 2 + 64, the inner width of both heads."""

    before: FlowState
    features: mx.array  # [N, D], the GRU's input
    products: list[tuple[mx.array, mx.array]]  # of each layer [N, 3 Hd]: of input and hidden state with their weights
    hidden: tuple[mx.array, ...]  # L arrays [N, Hd], after the step and before births
    inner: mx.array  # [N, M], the heads' first product
    energy: mx.array  # [N, 1], of the head
    displacement: mx.array  # [N, 3], of the head
    noise: mx.array | None  # [N, 3]
    births: Births | None


class FlowGradients(NamedTuple):
    """Gradients with respect to flows. hidden: L arrays [N, Hd], or None after the last step, whose hidden state nothing reads."""

    position: mx.array  # [N, 3]
    energy: mx.array  # [N, 1]
    hidden: tuple[mx.array, ...] | None


class WeightSums(NamedTuple):
    """Gradients of the weights, summed over the steps so far. Kernels leave a row of partial sums for each block of flows."""

    neuron: mx.array  # [blocks, P]
    layers: list[tuple[mx.array, mx.array, mx.array]]  # of each: input [3 Hd, D], hidden [3 Hd, Hd], biases [blocks, 4 Hd]
    inner: mx.array  # [M, Hd]
    heads: tuple[mx.array, mx.array]  # [blocks, 4, M], [blocks, 4]

    def arrays(self) -> list[mx.array]:
        """All of them."""
        return [self.neuron, *(array for layer in self.layers for array in layer), self.inner, *self.heads]


class FlowStep:
    """One step of all flows of a batch, for one configuration; it holds no weights.

        features = SimpleNeuron(position, energy)    hidden = GRU(features, energy; hidden)
        energy, displacement = heads(hidden)         position = advance(displacement + noise)

    Then flows that reached a plane arrive, those that hardly moved are dropped, and those that moved far leave children.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.dtype = flow_dtype(config)
        bounds = hidden_bounds(config)
        self.features_bound, self.bounds = bounds.read, bounds
        if bounds.read is not None and bounds.left is not None and bounds.left <= bounds.read:
            self.bounds = bounds._replace(read=None)  # the states of the previous step are within these bounds
        self._neuron = NeuronKernel(
            config.neuron_hidden_dim, config.neuron_output_dim, input_size(config), self.features_bound, self.dtype
        )

    def weights(self, neuron: SimpleNeuron, carrier: EnergyCarrier) -> StepWeights:
        """The parameters, cast and joined once for all steps."""
        own = neuron.weights()
        packed = wanted(self.config.neuron_hidden_dim, self.config.neuron_output_dim)
        return StepWeights([pack(own)] if packed else own, carrier.weights(self.dtype))

    def __call__(
        self, weights: StepWeights, flows: FlowState, noise: mx.array | None, scale: mx.array
    ) -> tuple[FlowState, StepTrace]:
        """The flows after one step; inactive ones stay as they are.

        Args:
            noise: [N, 3] exploration noise, or None.
            scale: [1], factor on displacements.
        """
        features = self.features(weights, flows)
        hidden, products = self.recur(weights, features, flows)
        energy, displacement, inner = self.steer(weights, hidden[-1], scale)
        move = self.move(displacement, energy, noise, flows)
        after, births = self._births(self.moved(flows, move, tuple(hidden)), flows.position, move.length)
        trace = StepTrace(flows, features, products, tuple(hidden), inner, energy, displacement, noise, births)
        return after, trace

    def backward(
        self, weights: StepWeights, trace: StepTrace, d: FlowGradients, scale: mx.array, sums: WeightSums | None
    ) -> tuple[FlowGradients, WeightSums]:
        """The gradients before a step from those after it, and `sums` with this step's gradients of the weights added.

        It calls the kernels' backward passes, which add to running sums. Autodiff would add the gradients of two dozen weights to
        those of the later steps with one launch each.

        Args:
            trace: what `__call__` kept of this step.
            d: gradients of the flows after the step, in the shapes of their fields of `FlowState`.
            scale: [1], factor on displacements.
            sums: gradients of the weights from the later steps, in the weights' shapes; None: this is the last step.
        """
        (packed,), carrier = weights
        before, births, before_move = trace.before, trace.births, None
        if births is not None:
            d, before_move = self._births_backward(births, d)
        d_displacement, d_new_energy, d_position, d_energy = advance_backward(
            d.position, d.energy, trace.displacement, before.position, trace.noise, before.active,
            reflection=self.config.boundary_reflection_enabled,
        )  # fmt: skip
        d_inner, head_sums = heads.backward(
            d_new_energy, d_displacement, trace.energy, trace.inner, *carrier.heads[1:4], scale, sums.heads if sums else None
        )
        inner = _product_sum(sums.inner if sums else None, d_inner, trace.hidden[-1])
        above = d_inner @ carrier.heads.inner
        d_hidden: list[mx.array] = []
        layers: list[tuple[mx.array, mx.array, mx.array]] = []
        for number in reversed(range(len(carrier.layers))):
            layer, state = carrier.layers[number], before.hidden[number]
            of_input, of_hidden, of_biases = sums.layers[number] if sums else (None, None, None)
            from_later = d.hidden[number] if d.hidden else None
            d_input, d_gates, direct, biases = gru_gates.backward(
                above if from_later is None else from_later,
                *trace.products[number],
                layer.bias,
                layer.hidden_bias,
                state,
                before.active,
                masked=True,
                bound=self.bounds.left,
                above=None if from_later is None else above,
                running=of_biases,
            )
            below = trace.hidden[number - 1] if number else trace.features
            above = d_input @ layer.input
            d_hidden.insert(0, mx.addmm(direct, d_gates, layer.hidden))
            layers.insert(0, (_product_sum(of_input, d_input, below), _product_sum(of_hidden, d_gates, state), biases))
        more_position, more_energy, neuron = self._neuron.backward(
            above, before.position, before.energy, packed, sums.neuron if sums else None
        )
        new = WeightSums(neuron, layers, inner, head_sums)
        # The gradients that are passed on depend on the sums: MLX could otherwise postpone the products that make the sums, and keep
        # the gates' gradients of every step and layer for them.
        position, energy = mx.depends([d_position + more_position, d_energy + more_energy], new.arrays())
        if before_move is not None:
            position = position + before_move
        return FlowGradients(position, energy, tuple(d_hidden)), new

    def has_backward(self, weights: StepWeights) -> bool:
        """Whether `backward` can be used: every part of a step runs as a kernel, and no hidden state is sanitised as it is read."""
        kernels = all(use_kernel(op) for op in ("gru_gates", "heads", "advance"))
        return kernels and len(weights.neuron) == 1 and self.bounds.read is None

    # The parts of a step, each a stage of `train --profile`.

    def features(self, weights: StepWeights, flows: FlowState) -> mx.array:
        """The GRU's input [N, D]: features, energy, zeros; sanitised."""
        kernel = self._neuron
        if len(weights.neuron) == 1:
            return run_packed(kernel, flows.position, flows.energy, weights.neuron[0])
        return neuron(
            flows.position, flows.energy, weights.neuron, padded=kernel.padded, bound=kernel.bound, dtype=kernel.dtype
        )

    def recur(
        self, weights: StepWeights, features: mx.array, flows: FlowState
    ) -> tuple[list[mx.array], list[tuple[mx.array, mx.array]]]:
        """The GRU: new hidden states, and the products behind them; see `carrier.recur`."""
        return recur(weights.carrier.layers, features, flows.hidden, flows.active, bounds=self.bounds)

    def steer(self, weights: StepWeights, g: mx.array, scale: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """The heads: energy, displacement, and the product behind them; see `carrier.steer`."""
        return steer(weights.carrier.heads, g, scale)

    def move(self, displacement: mx.array, energy: mx.array, noise: mx.array | None, flows: FlowState) -> Move:
        """The move itself, within the lattice's bounds; see `ops.advance`."""
        return advance(
            displacement, energy, flows.position, flows.energy, noise, flows.active, flows.age,
            reflection=self.config.boundary_reflection_enabled,
        )  # fmt: skip

    def moved(self, flows: FlowState, move: Move, hidden: tuple[mx.array, ...]) -> FlowState:
        """The flows after their move and with new hidden states, before births: some have arrived, and some are dropped."""
        after = flows._replace(
            position=move.position,
            energy=move.energy,
            hidden=hidden,
            age=move.age,
            active=move.moving,
            arrived=flows.arrived | move.terminated,
        )
        return self._without_short_moves(after, move.length)

    def _without_short_moves(self, flows: FlowState, length: mx.array) -> FlowState:
        if not self.config.enable_displacement_filtering:
            return flows
        short = flows.active & (length < self.config.min_displacement_threshold)
        return flows._replace(active=flows.active & ~short, dropped=flows.dropped + mx.sum(short))

    def _births(self, flows: FlowState, before: mx.array, length: mx.array) -> tuple[FlowState, Births | None]:
        """Children of this step: at the parent's position `before` its move [N, 3], with its new energy and hidden state."""
        config = self.config
        cells, slots = config.surface_dim, config.slots_per_sample
        if slots == cells:
            return flows, None
        batch = flows.children.shape[0]
        active = flows.active.reshape(batch, slots)
        births = spawn(
            length.reshape(batch, slots),
            active,
            flows.children,
            config.max_active_flows // whole(batch) - mx.sum(active, axis=1),
            slots=slots - cells,
            threshold=config.spawn_movement_threshold_ratio,
            most=config.max_spawn_per_step,
        )
        lives = births.parent >= 0

        def at_birth(own: mx.array, value: mx.array) -> mx.array:
            own = own.reshape(batch, slots)
            children = mx.where(lives, value, own[:, cells:])
            return mx.concatenate([own[:, :cells], children], axis=1).reshape(-1)

        born = flows._replace(
            position=inherit(flows.position, before, births),
            energy=inherit(flows.energy, flows.energy, births),
            hidden=tuple(inherit(layer, layer, births) for layer in flows.hidden),
            age=at_birth(flows.age, mx.zeros_like(births.parent)),
            active=at_birth(flows.active, mx.array(True)),
            parent=at_birth(flows.parent, births.parent),
            children=flows.children + births.born,
            overflowed=flows.overflowed + mx.sum(births.overflowed),
        )
        return born, births

    def _births_backward(self, births: Births, d: FlowGradients) -> tuple[FlowGradients, mx.array]:
        """Gradients before the births of a step from those after them, and that of the positions [N, 3] before its move."""
        position = inherit_gradient(d.position, births, passes=False)
        before_move = inherit_gradient(d.position, births, stays=False)
        hidden = None if d.hidden is None else tuple(inherit_gradient(layer, births) for layer in d.hidden)
        return FlowGradients(position, inherit_gradient(d.energy, births), hidden), before_move


def weight_gradients(weights: StepWeights, sums: WeightSums) -> StepWeights:
    """The gradient of every weight, from the sums over all steps."""
    layers = []
    for layer, (d_input, d_hidden, biases) in zip(weights.carrier.layers, sums.layers, strict=True):
        total, own = mx.sum(biases, axis=0), layer.bias.size
        layers.append(GRUWeights(d_input, d_hidden, total[:own], total[own:]))
    of_heads = heads.gradients_of_weights(sums.heads, weights.carrier.heads.energy_weight.size)
    return StepWeights([mx.sum(sums.neuron, axis=0)], CarrierWeights(layers, HeadWeights(sums.inner, *of_heads)))


def _product_sum(total: mx.array | None, left: mx.array, right: mx.array) -> mx.array:
    """total + left.T @ right, in one product."""
    product: Any = left.T @ right if total is None else mx.addmm(total, left.T, right)
    return product
