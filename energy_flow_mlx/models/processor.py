"""FlowProcessor: a flow's life, from the centre plane to an output plane (pytorch_energy_flow, section 3)."""

import logging
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from ..config import EnergyConfig
from ..nn.precision import DTYPES
from ..ops.advance import advance
from ..ops.collect import MAX_STEPS
from ..ops.neuron import neuron_reference, pack, run_packed, wanted
from ..ops.spawn import spawn
from .carrier import CarrierWeights, EnergyCarrier, LayerWeights
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
    """neuron: twelve arrays, or one that packs them for the kernel."""

    neuron: list[mx.array]
    carrier: CarrierWeights


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
        checkpointed = self.training and config.gradient_checkpointing
        stop = _AdaptiveStop(config) if config.convergence_enabled and not self.training else None
        for number in range(steps):
            noise = None
            if key is not None:
                key, here = mx.random.split(key)
                noise = self._noise(state.position.shape, here)
            move = self._checkpointed_step if checkpointed else self._step
            state = move(weights, state, noise, training_step)
            if stop is not None and stop.now(number + 1, state):
                break
        return self._finish(state)

    def _weights(self) -> "_Weights":
        """The weights of neuron and carrier, cast and joined once for all steps."""
        config = self.config
        neuron, carrier = self._shared
        dtype = mx.float32 if config.gru_force_fp32 else DTYPES[config.compute_dtype]
        own = neuron.weights()
        packed = wanted(config.neuron_hidden_dim, config.neuron_output_dim)
        return _Weights([pack(own)] if packed else own, carrier.weights(dtype))

    def _noise(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        noise = self.config.exploration_noise * mx.random.normal(shape, key=key)
        return noise if self.config.exploration_noise_apply_to_z else noise * mx.array([1.0, 1.0, 0.0])

    def _features(self, weights: list[mx.array], state: FlowState, dtype: mx.Dtype) -> mx.array:
        """What the GRU's first layer is given: features, energy, zeros; sanitised."""
        config = self.config
        bound = config.gru_input_clip_value if config.enable_gru_nan_protection else None
        options: dict[str, Any] = {"padded": self._shared[1].input_size, "bound": bound, "dtype": dtype}
        if len(weights) == 1:
            sizes = config.neuron_hidden_dim, config.neuron_output_dim
            return run_packed(weights[0], state.position, state.energy, *sizes, **options)
        return neuron_reference(state.position, state.energy, weights, **options)

    def _step(
        self, weights: "_Weights", state: FlowState, noise: mx.array | None, training_step: int | mx.array | None
    ) -> FlowState:
        """One move of every active flow; inactive ones stay as they are."""
        config = self.config
        carrier = self._shared[1]
        x = self._features(weights.neuron, state, weights.carrier.inner.dtype)
        hidden = carrier.recur(weights.carrier, x, state.hidden, state.active, own_hidden=True)
        energy, displacement = carrier.steer(weights.carrier, hidden[-1], training_step)
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
        moved = state._replace(
            position=move.position,
            energy=move.energy,
            hidden=tuple(hidden),
            age=move.age,
            active=move.moving,
            arrived=state.arrived | move.terminated,
        )
        if config.enable_displacement_filtering:
            short = moved.active & (move.length < config.min_displacement_threshold)
            moved = moved._replace(active=moved.active & ~short, dropped=state.dropped + mx.sum(short))
        if config.slots_per_sample > config.surface_dim:
            moved = self._spawn(moved, state.position, move.length)
        return moved

    def _checkpointed_step(
        self, weights: "_Weights", state: FlowState, noise: mx.array | None, training_step: int | mx.array | None
    ) -> FlowState:
        """`_step`, keeping only its inputs for the backward pass. The noise comes from outside: drawn inside, it would be
        drawn anew when the step is recomputed."""

        # mx.checkpoint sees positional arguments alone; weights it closed over would get zero gradients.
        # It hands named tuples on as plain ones.
        def step(neuron: list[mx.array], carrier: Any, *state: Any) -> FlowState:
            layers = [LayerWeights(*layer) for layer in carrier[0]]
            whole = _Weights(neuron, CarrierWeights(layers, *carrier[1:]))
            return self._step(whole, FlowState(*state), noise, training_step)

        return FlowState(*mx.checkpoint(step)(*weights, *state))

    def _spawn(self, state: FlowState, before: mx.array, length: mx.array) -> FlowState:
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
        lives = births.parent >= 0  # [B, K]
        source = mx.stop_gradient(mx.arange(batch)[:, None] * slots + mx.maximum(births.parent, 0)).reshape(-1)  # [B K]

        def inherit(own: mx.array, inherited: mx.array) -> mx.array:
            """own [N, d], inherited [N, d]: own, with the parents' rows of `inherited` in the slots of newborn children."""
            own = own.reshape(batch, slots, -1)
            rows = inherited[source].reshape(batch, slots - cells, -1)
            children = mx.where(lives[..., None], rows, own[:, cells:])
            return mx.concatenate([own[:, :cells], children], axis=1).reshape(batch * slots, -1)

        def at_birth(own: mx.array, value: mx.array | int | bool) -> mx.array:
            own = own.reshape(batch, slots)
            children = mx.where(lives, value, own[:, cells:])
            return mx.concatenate([own[:, :cells], children], axis=1).reshape(-1)

        return state._replace(
            position=inherit(state.position, before),
            energy=inherit(state.energy, state.energy),
            hidden=tuple(inherit(layer, layer) for layer in state.hidden),
            age=at_birth(state.age, mx.zeros_like(births.parent)),
            active=at_birth(state.active, mx.array(True)),
            parent=at_birth(state.parent, births.parent),
            children=state.children + births.born,
            overflowed=state.overflowed + mx.sum(births.overflowed),
        )

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
