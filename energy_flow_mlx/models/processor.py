"""FlowProcessor: a flow's life, from the centre plane to an output plane (pytorch_energy_flow, section 3)."""

import logging
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from ..config import ModelConfig as EnergyConfig
from ..nn.precision import flow_dtype
from ..ops.advance import Move, advance
from ..ops.checkpoint import recomputed
from ..ops.collect import MAX_STEPS
from ..ops.inherit import inherit, inherit_gradient
from ..ops.kernel import use_kernel
from ..ops.neuron import NeuronKernel, neuron_reference, pack, run_packed, wanted
from ..ops.spawn import Births, spawn
from .carrier import CarrierWeights, EnergyCarrier
from .flow_steps import Cotangents, StepSizes, flow_life
from .lattice import EnergyLattice, FlowState
from .neuron import SimpleNeuron

logger = logging.getLogger(__name__)


class FlowResult(NamedTuple):
    """surface [B, S]; the rest are int32 scalars over the whole batch.

    reached_z0, reached_zdepth: flows that reached the plane z = -1, z = +1 by moving. projected: unfinished flows put on
    their nearest plane. dropped: flows given up (too short a move, or unfinished with projection off). spawned: children
    that lived. overflowed: children for which there was no room.
    """

    surface: mx.array
    reached_z0: mx.array
    reached_zdepth: mx.array
    projected: mx.array
    dropped: mx.array
    spawned: mx.array
    overflowed: mx.array


class _Weights(NamedTuple):
    """What all steps share. neuron: twelve arrays, or one that packs them for the kernel."""

    neuron: list[mx.array]
    carrier: CarrierWeights
    sizes: StepSizes


class FlowProcessor(nn.Module):
    """Drives all flows of a batch at once. It has no weights of its own: it uses those of `neuron` and `carrier`."""

    def __init__(self, config: EnergyConfig, neuron: SimpleNeuron, carrier: EnergyCarrier) -> None:
        super().__init__()
        self.config = config
        self.lattice = EnergyLattice(config)
        # In a tuple, which nn.Module does not look into: the weights are shared and must be counted and trained once.
        self._shared = (neuron, carrier)
        self._overflow_logged = False

    def __call__(
        self,
        surface: mx.array,
        *,
        steps: int | None = None,
        key: mx.array | None = None,
        training_step: int | mx.array | None = None,
    ) -> FlowResult:
        """Run the flows of the surfaces and collect them.

        Args:
            surface: [B, S] or [B, H, W], the energy each cell starts its flow with.
            steps: moves a flow may make, 1 to 800; None: D // 2.
            key: random key for exploration noise; needed while training with `use_exploration_noise`.
            training_step: where the displacement schedule stands; None: at its start.

        Raises:
            ValueError: a wrong shape, steps out of range, a missing key, too many flows.
        """
        config = self.config
        steps = config.flow_steps if steps is None else steps
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps={steps} came, accepted are 1 to {MAX_STEPS}")
        noisy = self.training and config.use_exploration_noise
        if not noisy:
            key = None
        elif key is None:
            raise ValueError("key: None came; training with use_exploration_noise needs a random key")
        weights = self._weights()
        state = self.lattice.place_initial_energy(surface, weights.carrier.inner.dtype)
        noises: list[mx.array | None] = [None] * steps
        if key is not None:
            noises = [self._noise(state.position.shape, here) for here in mx.random.split(key, steps)]
        scale = self._shared[1].scale(training_step)
        if self.training and self._all_kernels(weights):
            every = config.checkpoint_steps if config.gradient_checkpointing else 0
            packed = weights.neuron[0]
            return self._finish(flow_life(weights.sizes, packed, weights.carrier, state, noises, scale, self, every))
        checkpointed = self.training and config.gradient_checkpointing
        move = self._checkpointed_step if checkpointed else self._step
        stop = _AdaptiveStop(config) if config.convergence_enabled and not self.training else None
        for number, noise in enumerate(noises):
            state = move(weights, state, noise, scale)
            if stop is not None and stop.now(number + 1, state):
                break
        return self._finish(state)

    def _weights(self) -> "_Weights":
        """The weights of neuron and carrier, cast and joined once for all steps."""
        config = self.config
        neuron, carrier = self._shared
        dtype = flow_dtype(config)
        own = neuron.weights()
        packed = wanted(config.neuron_hidden_dim, config.neuron_output_dim)
        return _Weights([pack(own)] if packed else own, carrier.weights(dtype), self._step_sizes(dtype))

    def _all_kernels(self, weights: "_Weights") -> bool:
        """Whether every part of a step runs as a kernel, so that the whole life can."""
        config = self.config
        bounded = config.gru_output_clip_value <= config.gru_input_clip_value or not config.enable_gru_nan_protection
        kernels = all(use_kernel(op) for op in ("gru_gates", "heads", "advance"))
        return kernels and len(weights.neuron) == 1 and bounded and config.gru_implementation == "matrix"

    def _step_sizes(self, dtype: mx.Dtype) -> StepSizes:
        config = self.config
        guard = config.enable_gru_nan_protection
        neuron = NeuronKernel(
            config.neuron_hidden_dim,
            config.neuron_output_dim,
            self._shared[1].input_size,
            config.gru_input_clip_value if guard else None,
            dtype,
        )
        return StepSizes(
            neuron,
            config.gru_output_clip_value if guard else None,
            config.lattice_width,
            config.lattice_height,
            config.boundary_reflection_enabled,
        )

    def _noise(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        noise = self.config.exploration_noise * mx.random.normal(shape, key=key)
        return noise if self.config.exploration_noise_apply_to_z else noise * mx.array([1.0, 1.0, 0.0])

    def _features(self, weights: "_Weights", state: FlowState) -> mx.array:
        """What the GRU's first layer is given: features, energy, zeros; sanitised."""
        sizes = weights.sizes.neuron
        if len(weights.neuron) == 1:
            return run_packed(sizes, state.position, state.energy, weights.neuron[0])
        return neuron_reference(
            state.position, state.energy, weights.neuron, padded=sizes.padded, bound=sizes.bound, dtype=sizes.dtype
        )

    def _step(self, weights: "_Weights", state: FlowState, noise: mx.array | None, scale: mx.array) -> FlowState:
        """One move of every active flow; inactive ones stay as they are."""
        config = self.config
        carrier = self._shared[1]
        x = self._features(weights, state)
        hidden = carrier.recur(weights.carrier, x, state.hidden, state.active, own_hidden=True)
        energy, displacement = carrier.steer(weights.carrier, hidden[-1], scale)
        move = advance(
            displacement,
            energy,
            state.position,
            state.energy,
            noise,
            state.active,
            state.age,
            width=config.lattice_width,
            height=config.lattice_height,
            reflection=config.boundary_reflection_enabled,
        )
        return self.after(state, move, tuple(hidden))[0]

    def after(self, before: FlowState, move: Move, hidden: tuple[mx.array, ...]) -> tuple[FlowState, Births | None]:
        """The flows after a move and what follows from it: arrivals, dropped flows, children; and the births, if flows spawn."""
        config = self.config
        moved = before._replace(
            position=move.position,
            energy=move.energy,
            hidden=hidden,
            age=move.age,
            active=move.moving,
            arrived=before.arrived | move.terminated,
        )
        if config.enable_displacement_filtering:
            short = moved.active & (move.length < config.min_displacement_threshold)
            moved = moved._replace(active=moved.active & ~short, dropped=before.dropped + mx.sum(short))
        if config.slots_per_sample > config.surface_dim:
            return self._spawn(moved, before.position, move.length)
        return moved, None

    def undo(self, births: Births, d: Cotangents) -> tuple[Cotangents, mx.array]:
        """Gradients before the births of a step from those after them, and that of the positions before its move."""
        position = inherit_gradient(d.position, births, passes=False)
        before_move = inherit_gradient(d.position, births, stays=False)
        hidden = None if d.hidden is None else tuple(inherit_gradient(layer, births) for layer in d.hidden)
        return Cotangents(position, inherit_gradient(d.energy, births), hidden), before_move

    def _checkpointed_step(
        self, weights: "_Weights", state: FlowState, noise: mx.array | None, scale: mx.array
    ) -> FlowState:
        """`_step`, keeping only its inputs for the backward pass. The noise comes from outside: drawn inside, it would be
        drawn anew when the step is recomputed."""

        # The backward pass sees positional arguments alone; weights it closed over would get zero gradients.
        neurons, carriers = len(weights.neuron), len(weights.carrier.flat())

        def step(*arrays: mx.array) -> list[mx.array]:
            carrier = CarrierWeights.of(arrays[neurons : neurons + carriers])
            own = weights._replace(neuron=list(arrays[:neurons]), carrier=carrier)
            return self._step(own, FlowState.of(arrays[neurons + carriers :]), noise, scale).flat()

        return FlowState.of(recomputed(step)(*weights.neuron, *weights.carrier.flat(), *state.flat()))

    def _spawn(self, state: FlowState, before: mx.array, length: mx.array) -> tuple[FlowState, Births]:
        """Children of this step: at the parent's position before the move, with its new energy and hidden state."""
        config = self.config
        batch = state.children.shape[0]
        cells, slots = config.surface_dim, config.slots_per_sample
        active = state.active.reshape(batch, slots)
        births = spawn(
            length.reshape(batch, slots),
            active,
            state.children,
            config.max_active_flows // batch - mx.sum(active, axis=1),
            slots=slots - cells,
            threshold=config.spawn_movement_threshold_ratio,
            most=config.max_spawn_per_step,
        )
        lives = births.parent >= 0

        def at_birth(own: mx.array, value: mx.array | int | bool) -> mx.array:
            own = own.reshape(batch, slots)
            children = mx.where(lives, value, own[:, cells:])
            return mx.concatenate([own[:, :cells], children], axis=1).reshape(-1)

        born = state._replace(
            position=inherit(state.position, before, births),
            energy=inherit(state.energy, state.energy, births),
            hidden=tuple(inherit(layer, layer, births) for layer in state.hidden),
            age=at_birth(state.age, mx.zeros_like(births.parent)),
            active=at_birth(state.active, mx.array(True)),
            parent=at_birth(state.parent, births.parent),
            children=state.children + births.born,
            overflowed=state.overflowed + mx.sum(births.overflowed),
        )
        return born, births

    def _finish(self, state: FlowState) -> FlowResult:
        """Project or drop what is unfinished, and collect."""
        config = self.config
        at_zdepth = state.position[:, 2] > 0
        unfinished = mx.sum(state.active)
        reached_z0 = mx.sum(state.arrived & ~at_zdepth)
        reached_zdepth = mx.sum(state.arrived & at_zdepth)
        nothing = mx.zeros_like(unfinished)
        # A projected flow is collected with the distance it still had, which is what weighs it down.
        collected = state.arrived | state.active if config.project_unfinished else state.arrived
        return FlowResult(
            surface=self.lattice.collect(state, collected),
            reached_z0=reached_z0,
            reached_zdepth=reached_zdepth,
            projected=unfinished if config.project_unfinished else nothing,
            dropped=state.dropped + (nothing if config.project_unfinished else unfinished),
            spawned=mx.sum(state.children),
            overflowed=state.overflowed,
        )

    def log_overflow(self, overflowed: int) -> None:
        """Warn, once in this processor's life, when children found no room; `overflowed` is that of a FlowResult."""
        if not self._overflow_logged and overflowed > 0:
            self._overflow_logged = True
            logger.warning(
                "%d children found no room and were not born; raise spawn_capacity=%g (or max_active_flows=%d)",
                overflowed,
                self.config.spawn_capacity,
                self.config.max_active_flows,
            )


class _AdaptiveStop:
    """Stops a run early once enough flows have arrived, or none does any more. Reads counts: evaluation only."""

    def __init__(self, config: EnergyConfig) -> None:
        self.config = config
        self.best, self.idle = -1, 0

    def now(self, steps_done: int, state: FlowState) -> bool:
        if steps_done < self.config.convergence_min_steps:
            return False
        arrived, moving = (cast(int, mx.sum(flows).item()) for flows in (state.arrived, state.active))
        self.idle = 0 if arrived > self.best else self.idle + 1
        self.best = max(arrived, self.best)
        done = arrived >= self.config.convergence_threshold * (arrived + moving)
        return done or self.idle >= self.config.convergence_patience
