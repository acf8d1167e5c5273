"""EnergyCarrier: what a flow remembers and where it goes next."""

import math
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..config import EnergyConfig
from ..nn import GRUCell, run
from ..nn.gru import initialise_gru
from ..ops.advance import advance
from ..ops.numerics import sanitise
from .shapes import expect_shape

DISPLACEMENT_WIDTH = 64  # inner width of the displacement head
HISTORY = 5  # positions in a position history


class CarrierOutput(NamedTuple):
    """energy [N,1] in [-1,1]; next_position [N,3] in [-1,1]; raw_next_position [N,3] before the clamp;
    hidden [L,N,Hd]; is_terminated [N] bool: next_position lies on an output plane."""

    energy: mx.array
    next_position: mx.array
    raw_next_position: mx.array
    hidden: mx.array
    is_terminated: mx.array


class EnergyCarrier(nn.Module):
    """An L-layer GRU and two heads, one set of weights for all flows (pytorch_energy_flow, section 2).

        input [neuron_output, energy] -> GRU, one time step -> g [N, Hd]
        energy:       Linear(Hd, Hd/2) GELU Linear(Hd/2, 1) Tanh
        displacement: scale(training_step) * (Linear(Hd, 64) GELU Linear(64, 3))

    Inputs and hidden state, and again the GRU's outputs, are sanitised unless `enable_gru_nan_protection` is off.
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        self.config = config
        size = config.carrier_hidden_size
        inputs = [config.neuron_output_dim + 1] + [size] * (config.carrier_num_layers - 1)
        kind: type[nn.Module] = GRUCell if config.gru_implementation == "matrix" else nn.GRU
        self.gru = [kind(width, size) for width in inputs]  # type: ignore[call-arg]
        for layer in self.gru:
            initialise_gru(layer)
        self.energy_projection = [nn.Linear(size, size // 2), nn.GELU(), nn.Linear(size // 2, 1), nn.Tanh()]
        self.displacement_projection = [
            nn.Linear(size, DISPLACEMENT_WIDTH), nn.GELU(), nn.Linear(DISPLACEMENT_WIDTH, 3)
        ]  # fmt: skip
        for head in (self.energy_projection, self.displacement_projection):
            for linear in head[::2]:
                deviation = math.sqrt(2.0 / sum(linear.weight.shape))  # Xavier
                linear.weight = deviation * mx.random.normal(linear.weight.shape)
                linear.bias = mx.zeros_like(linear.bias)
        self.position_memory = nn.Linear(3 * HISTORY, size // 4)
        self.history_fusion = [nn.Linear(size + size // 4, size), nn.GELU(), nn.Linear(size, size)]

    def displacement_scale(self, training_step: int | mx.array | None) -> float | mx.array:
        """The factor on displacements: `displacement_scale` before `displacement_warmup_steps`, then multiplied by
        `displacement_scale_decay` every `displacement_scale_update_interval` steps, never under `displacement_scale_min`.
        None stands for step 0. An array step gives an array, so that a compiled step need not be traced anew."""
        config = self.config
        if training_step is None:
            return config.displacement_scale
        since = training_step - config.displacement_warmup_steps
        interval = config.displacement_scale_update_interval
        if isinstance(since, mx.array):
            updates = mx.maximum(since // interval, 0).astype(mx.float32)
            scale = config.displacement_scale * mx.power(mx.array(config.displacement_scale_decay), updates)
            return mx.maximum(scale, config.displacement_scale_min)
        scale_now = config.displacement_scale * config.displacement_scale_decay ** max(since // interval, 0)
        return max(scale_now, config.displacement_scale_min)

    def drive(
        self,
        neuron_output: mx.array,
        energy: mx.array,
        hidden: mx.array | None,
        *,
        training_step: int | mx.array | None = None,
        position_history: mx.array | None = None,
        active: mx.array | None = None,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """GRU and heads, without the move: new energy [N, 1], displacement [N, 3] (scaled, not clipped), hidden [L, N, Hd].

        Where `active` [N] is False the hidden state stays as it was; energy and displacement there mean nothing.
        """
        config = self.config
        flows = neuron_output.shape[0]
        layers, size = config.carrier_num_layers, config.carrier_hidden_size
        expect_shape("neuron_output", neuron_output, (None, config.neuron_output_dim))
        expect_shape("energy", energy, (flows, 1))
        if hidden is None:
            hidden = mx.zeros((layers, flows, size))
        expect_shape("hidden", hidden, (layers, flows, size))

        x = self._protected(mx.concatenate([neuron_output, energy], axis=1), config.gru_input_clip_value)
        states = []
        for layer, state in zip(self.gru, hidden, strict=True):
            state = self._protected(state, config.gru_input_clip_value)
            x = self._layer_step(layer, x, state, active)
            states.append(self._protected(x, config.gru_output_clip_value))
        g = states[-1]
        if position_history is not None:
            g = self._fuse_history(g, position_history)
        displacement = run(self.displacement_projection, g) * self.displacement_scale(training_step)
        return run(self.energy_projection, g), displacement, mx.stack(states)

    def __call__(
        self,
        neuron_output: mx.array,
        energy: mx.array,
        hidden: mx.array | None,
        position: mx.array,
        *,
        training_step: int | mx.array | None = None,
        noise: mx.array | None = None,
        position_history: mx.array | None = None,
    ) -> CarrierOutput:
        """One step of N flows.

        Args:
            neuron_output: [N, F].
            energy: [N, 1].
            hidden: [L, N, Hd], or None for zeros.
            position: [N, 3] in [-1, 1].
            training_step: where the displacement schedule stands; None: at its start.
            noise: [N, 3] exploration noise added to the move, or None.
            position_history: [N, up to 5, 3] past positions, zero-padded to 5 here, or None.

        Raises:
            ValueError: an argument has the wrong shape; names it.
        """
        expect_shape("position", position, (neuron_output.shape[0], 3))
        if noise is not None:
            expect_shape("noise", noise, tuple(position.shape))
        energy, displacement, hidden = self.drive(
            neuron_output, energy, hidden, training_step=training_step, position_history=position_history
        )
        move = advance(displacement, position, noise)
        return CarrierOutput(energy, move.position, move.raw, hidden, move.terminated)

    def _protected(self, x: mx.array, bound: float) -> mx.array:
        return sanitise(x, bound) if self.config.enable_gru_nan_protection else x

    @staticmethod
    def _layer_step(layer: nn.Module, x: mx.array, state: mx.array, active: mx.array | None) -> mx.array:
        if isinstance(layer, GRUCell):
            return layer(x, state, active)
        new = layer(x[:, None], state)[:, 0]  # nn.GRU wants a time axis
        return new if active is None else mx.where(active[:, None], new, state)

    def _fuse_history(self, g: mx.array, history: mx.array) -> mx.array:
        if history.ndim != 3 or history.shape[1] > HISTORY:
            raise ValueError(
                f"position_history: shape {tuple(history.shape)} came, accepted is (N, up to {HISTORY}, 3)"
            )
        expect_shape("position_history", history, (g.shape[0], None, 3))
        history = mx.pad(history, [(0, 0), (0, HISTORY - history.shape[1]), (0, 0)])
        remembered = self.position_memory(history.reshape(g.shape[0], 3 * HISTORY))
        return run(self.history_fusion, mx.concatenate([g, remembered], axis=1))
