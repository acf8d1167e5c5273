"""A step of evaluation as one kernel, or all steps, where that is asked for and the model suits it."""

import mlx.core as mx

from ..ops.flow_step import StepKernel
from ..ops.kernel import use_kernel
from ..ops.neuron import pack
from .carrier import DISPLACEMENT_WIDTH
from .lattice import FlowState
from .step import FlowStep, StepWeights


def step_kernel(step: FlowStep) -> StepKernel:
    """The kernel of the step's sizes."""
    config = step.config
    return StepKernel(
        layers=config.carrier_num_layers,
        size=config.carrier_hidden_size,
        inner=DISPLACEMENT_WIDTH,
        hidden=config.neuron_hidden_dim,
        features=config.neuron_output_dim,
        features_bound=step.features_bound,
        bound=step.bounds.left,
        reflection=config.boundary_reflection_enabled,
        dtype=step.dtype,
    )


def why_apart(step: FlowStep) -> str:
    """Why evaluation takes the parts of a step one after another; "" where it takes steps whole, all in one launch if nobody looks between
    them. `benchmark --stages` prints it."""
    if not use_kernel("flow_step"):
        return "flow_step is off, as it is until it has been measured to win; ENERGY_FLOW_KERNELS=auto,+flow_step turns it on"
    return unsuited(step)


def unsuited(step: FlowStep) -> str:
    """Why the kernel cannot run these steps; "" where it can."""
    if step.config.slots_per_sample > step.config.surface_dim:
        return "movement_based_spawn=True: children inherit the hidden states of each layer by itself"
    if step.bounds.read is not None:
        return "gru_output_clip_value is above gru_input_clip_value, so that hidden states are sanitised where they are read"
    return step_kernel(step).unsuited()


class WholeStep:
    """`FlowStep.__call__` as one kernel, without a trace and without a gradient. Its flows have one hidden state, [L, N, Hd] with N up
    to whole tiles and in the kernel's own order, which only the next step reads.

    Args:
        weights: packed once for all steps.
    """

    def __init__(self, step: FlowStep, weights: StepWeights) -> None:
        self._step, self._kernel = step, step_kernel(step)
        neuron, (layers, heads) = weights
        packed = neuron[0] if len(neuron) == 1 else pack(neuron)
        self.packed = self._kernel.packed(packed, layers, heads)

    def start(self, flows: FlowState) -> FlowState:
        """The flows with their hidden states as the kernel takes them."""
        return flows._replace(hidden=(self._kernel.padded(mx.stack(list(flows.hidden))),))

    def __call__(
        self, weights: StepWeights, flows: FlowState, noise: mx.array | None, scale: mx.array
    ) -> tuple[FlowState, None]:
        """The flows after one step; `weights` are those packed before, and evaluation has no noise."""
        (hidden,) = flows.hidden
        move, after = self._kernel(self.packed, flows.position, flows.energy, hidden, flows.active, flows.age, scale)
        return self._step.moved(flows, move, (after,)), None

    def life(self, flows: FlowState, steps: int, scale: mx.array) -> FlowState:
        """The flows after so many steps, in one launch, from where they were placed; without hidden states."""
        config = self._step.config
        shortest = config.min_displacement_threshold if config.enable_displacement_filtering else None
        position, energy, active, age, arrived, dropped = self._kernel.life(
            self.packed, flows.position, flows.energy, flows.active, flows.age, scale, steps, shortest
        )
        return flows._replace(
            position=position, energy=energy, hidden=(), age=age, active=active, arrived=arrived, dropped=flows.dropped + mx.sum(dropped)
        )
