"""FlowProcessor: from a surface to the surface that its flows leave."""

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

from ..config import ModelConfig
from ..ops.collect import MAX_STEPS
from ..place import own_rows
from .carrier import EnergyCarrier
from .lattice import EnergyLattice, FlowState, mean_distance
from .life import live, live_by_hand, recomputed
from .neuron import SimpleNeuron
from .shapes import as_rows
from .step import FlowStep, StepWeights
from .whole_step import WholeStep, why_apart

logger = logging.getLogger(__name__)

MOST_ROOM = 64.0  # the largest spawn_capacity

Witness = Callable[[int, FlowState], None]  # steps done, flows
Stop = Callable[[int, FlowState], bool]


class FlowResult(NamedTuple):
    """surface [B, S]; the rest are scalars over the whole batch, counts int32 and means float32.

    reached_z0, reached_zdepth: flows that reached the plane z = -1, z = +1 by moving. projected: unfinished flows put on
    their nearest plane. dropped: flows given up (too short a move, or unfinished with projection off). spawned: children
    that lived. overflowed: children for which there was no room.

    distance: mean over the flows, dropped ones aside, of the distance to the nearest plane at the end; differentiable. living: the
    number of those flows. occupied: cells on which at least one flow was collected. sideways: mean distance in x and y between the first flows' start and end, in cells.
    """

    surface: mx.array
    reached_z0: mx.array
    reached_zdepth: mx.array
    projected: mx.array
    dropped: mx.array
    spawned: mx.array
    overflowed: mx.array
    distance: mx.array
    living: mx.array
    occupied: mx.array
    sideways: mx.array


class FlowProcessor(nn.Module):
    """Drives all flows of a batch at once. It has no weights of its own: it uses those of `neuron` and `carrier`."""

    def __init__(self, config: ModelConfig, neuron: SimpleNeuron, carrier: EnergyCarrier) -> None:
        super().__init__()
        self.config = config
        self.lattice = EnergyLattice(config)
        self.step = FlowStep(config)
        # In a tuple, which nn.Module does not look into: the weights are shared and must be counted and trained once.
        self._shared = (neuron, carrier)
        self._overflow_logged = False
        self._roomy = self.step, self.lattice  # those of evaluation, whose room for children grows

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
        steps = self._steps(steps)
        noisy = self.training and config.use_exploration_noise
        if not noisy:
            key = None
        elif key is None:
            raise ValueError("key: None came; training with use_exploration_noise needs a random key")
        neuron, carrier = self._shared
        weights = self.step.weights(neuron, carrier)
        scale = carrier.scale(training_step)
        if not self.training:
            return self._evaluate(weights, surface, steps, scale)[0]
        start = self.lattice.place_initial_energy(surface, self.step.dtype)
        noises: list[mx.array | None] = [None] * steps
        if key is not None:
            noises = [self._noise(start.position.shape, own) for own in mx.random.split(key, steps)]
        if self.step.has_backward(weights):
            recompute = config.checkpoint_steps if config.gradient_checkpointing else 0
            return self._finish(live_by_hand(self.step, weights, start, noises, scale, recompute=recompute))
        step = recomputed(self.step) if config.gradient_checkpointing else self.step
        return self._finish(live(step, weights, start, noises, scale))

    def watch(
        self, surface: mx.array, witness: Witness, *, steps: int | None = None, training_step: int | mx.array | None = None
    ) -> tuple[FlowResult, FlowState, mx.array, mx.array]:
        """Run the flows as evaluation does, while `witness` sees them.

        Args:
            witness: called with the steps done and the flows, before the first step (0) and after each. Flows that lacked room for
                children run again, from 0.

        Returns:
            The result, the flows after their last step, and as `ops.collect.shares` the cells and weights [N, K] that they have there.
        """
        neuron, carrier = self._shared
        weights, scale = self.step.weights(neuron, carrier), carrier.scale(training_step)
        result, end = self._evaluate(weights, surface, self._steps(steps), scale, witness)
        return result, end, *self.lattice.shares(end, self._collected(end))

    def _steps(self, steps: int | None) -> int:
        steps = self.config.flow_steps if steps is None else steps
        if not 1 <= steps <= MAX_STEPS:
            raise ValueError(f"steps={steps} came, accepted are 1 to {MAX_STEPS}")
        return steps

    def _evaluate(
        self, weights: StepWeights, surface: mx.array, steps: int, scale: mx.array, witness: Witness | None = None
    ) -> tuple[FlowResult, FlowState]:
        """Run the flows without noise. Where children are lost for want of room, run them again with four times the room, until none
        is lost or more room saves none (`max_active_flows` bounds those that move at once). Later calls start with that room.

        Args:
            witness: shown the flows before the first step (0) and after each step; a run with more room starts at 0 again.

        Returns:
            The result, and the flows after their last step.
        """
        lost = 0
        while True:
            step, lattice = self._roomy
            config = step.config
            start = lattice.place_initial_energy(surface, step.dtype)
            stop: Stop | None = _AdaptiveStop(config) if config.convergence_enabled else None
            if witness is not None:
                witness(0, start)
                stop = _watched(witness, stop)
            whole_step = None if why_apart(step) else WholeStep(step, weights)
            if whole_step is None:
                end = live(step, weights, start, [None] * steps, scale, stop=stop)
            elif stop is None:
                end = whole_step.life(start, steps, scale)
            else:
                end = live(whole_step, weights, whole_step.start(start), [None] * steps, scale, stop=stop)
            result = self._finish(end)
            if config.slots_per_sample == config.surface_dim or config.spawn_capacity >= MOST_ROOM:
                return result, end
            before, lost = lost, cast(int, result.overflowed.item())
            if lost in (0, before):
                return result, end
            roomier = config.replace(spawn_capacity=min(max(4 * config.spawn_capacity, 1.0), MOST_ROOM))
            self._roomy = FlowStep(roomier), EnergyLattice(roomier)

    def left_out(self, surface: mx.array) -> FlowResult:
        """What takes the place of the flows where `flows_enabled` is off: the surface [B, S] itself, and no flow."""
        nothing, mean = mx.array(0, dtype=mx.int32), mx.array(0.0)
        rows = as_rows("surface", surface, self.config.lattice_width, self.config.lattice_height)
        counts = dict.fromkeys(FlowResult._fields[1:], nothing)
        return FlowResult(surface=rows, **counts | {"distance": mean, "sideways": mean})

    def _noise(self, shape: tuple[int, ...], key: mx.array) -> mx.array:
        noise = self.config.exploration_noise * own_rows(partial(mx.random.normal, key=key), shape)
        return noise if self.config.exploration_noise_apply_to_z else noise * mx.array([1.0, 1.0, 0.0])

    def _finish(self, state: FlowState) -> FlowResult:
        """Project or drop what is unfinished, and collect."""
        at_zdepth = state.position[:, 2] > 0
        unfinished = mx.sum(state.active)
        reached_z0 = mx.sum(state.arrived & ~at_zdepth)
        reached_zdepth = mx.sum(state.arrived & at_zdepth)
        nothing = mx.zeros_like(unfinished)
        collected = self._collected(state)
        return FlowResult(
            surface=self.lattice.collect(state, collected),
            reached_z0=reached_z0,
            reached_zdepth=reached_zdepth,
            projected=unfinished if self.config.project_unfinished else nothing,
            dropped=state.dropped + (nothing if self.config.project_unfinished else unfinished),
            spawned=mx.sum(state.children),
            overflowed=state.overflowed,
            distance=mean_distance(state),
            living=mx.sum(state.arrived | state.active),
            occupied=self.lattice.occupied(state, collected),
            sideways=self.lattice.sideways(state),
        )

    def _collected(self, state: FlowState) -> mx.array:
        """Which flows [N] leave something on the surface."""
        # A projected flow is collected with the distance it still had, which is what weighs it down.
        return state.arrived | state.active if self.config.project_unfinished else state.arrived

    def reset_room(self) -> None:
        """Evaluation starts again with the room for children of the configuration. Sums over more slots are rounded otherwise, so that
        without this a result would depend on what was evaluated before."""
        self._roomy = self.step, self.lattice

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


def _watched(witness: Witness, stop: Stop | None) -> Stop:
    """`stop`, asked after the witness has seen the flows."""

    def watched(steps_done: int, state: FlowState) -> bool:
        witness(steps_done, state)
        return stop is not None and stop(steps_done, state)

    return watched


class _AdaptiveStop:
    """Stops a run early once enough flows have arrived, or none does any more. Reads counts: evaluation only."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.best, self.idle = -1, 0

    def __call__(self, steps_done: int, state: FlowState) -> bool:
        if steps_done < self.config.convergence_min_steps:
            return False
        arrived, moving = (cast(int, mx.sum(flows).item()) for flows in (state.arrived, state.active))
        self.idle = 0 if arrived > self.best else self.idle + 1
        self.best = max(arrived, self.best)
        done = arrived >= self.config.convergence_threshold * (arrived + moving)
        return done or self.idle >= self.config.convergence_patience
