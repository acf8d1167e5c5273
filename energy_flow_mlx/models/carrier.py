"""EnergyCarrier: what a flow remembers and where it goes next."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..config import ModelConfig
from ..nn import GRUCell, Linear, run
from ..nn.gru import GRUWeights, gru_step
from ..ops.advance import bounded, on_plane, raw_move
from ..ops.heads import heads
from ..ops.kernel import setting
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


class HeadWeights(NamedTuple):
    """Both heads side by side, as `ops.heads` takes them; A = Hd / 2 columns of the energy head, then M = 64 of displacement.

    inner [A + M, Hd] in the dtype of the products; inner_bias [A + M], energy_weight [A], displacement_weight [3, M] and out_bias [4]
    (energy, x, y, z) float32.
    """

    inner: mx.array
    inner_bias: mx.array
    energy_weight: mx.array
    displacement_weight: mx.array
    out_bias: mx.array


class CarrierWeights(NamedTuple):
    """The parameters as the steps of a flow's life share them: cast and joined once."""

    layers: list[GRUWeights]
    heads: HeadWeights


class EnergyCarrier(nn.Module):
    """An L-layer GRU and two heads, one set of weights for all flows of the reference.

        input [neuron_output, energy] -> GRU, one time step -> g [N, Hd]
        energy:       Linear(Hd, Hd/2) GELU Linear(Hd/2, 1) Tanh
        displacement: scale(training_step) * (Linear(Hd, 64) GELU Linear(64, 3))

    Inputs and hidden state, and again the GRU's outputs, are sanitised unless `enable_gru_nan_protection` is off.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size = config.carrier_hidden_size
        inputs = [config.neuron_output_dim + 1] + [size] * (config.carrier_num_layers - 1)
        self.gru = [GRUCell(width, size) for width in inputs]
        self.energy_projection = [Linear(size, size // 2), nn.GELU(), Linear(size // 2, 1), nn.Tanh()]
        self.displacement_projection = [
            Linear(size, DISPLACEMENT_WIDTH), nn.GELU(), Linear(DISPLACEMENT_WIDTH, 3)
        ]  # fmt: skip
        for head in (self.energy_projection, self.displacement_projection):
            for linear in head[::2]:
                deviation = math.sqrt(2.0 / sum(linear.weight.shape))  # Xavier
                linear.weight = deviation * mx.random.normal(linear.weight.shape)
                linear.bias = mx.zeros_like(linear.bias)
        self.position_memory = Linear(3 * HISTORY, size // 4)
        self.history_fusion = [Linear(size + size // 4, size), nn.GELU(), Linear(size, size)]

    def displacement_scale(self, training_step: int | mx.array | None) -> float | mx.array:
        """The factor on displacements: `displacement_scale` before `displacement_warmup_steps`, then multiplied by
        `displacement_scale_decay` every `displacement_scale_update_interval` steps, never under `displacement_scale_min`.
        None stands for step 0. An array step gives an array, so that a compiled step need not be traced anew."""
        config = self.config
        if training_step is None or config.displacement_scale_min == config.displacement_scale:
            return config.displacement_scale
        since = training_step - config.displacement_warmup_steps
        interval = config.displacement_scale_update_interval
        if isinstance(since, mx.array):
            updates = mx.maximum(since // interval, 0).astype(mx.float32)
            scale = config.displacement_scale * mx.power(mx.array(config.displacement_scale_decay), updates)
            return mx.maximum(scale, config.displacement_scale_min)
        scale_now = config.displacement_scale * config.displacement_scale_decay ** max(since // interval, 0)
        return max(scale_now, config.displacement_scale_min)

    def scale(self, training_step: int | mx.array | None) -> mx.array:
        """`displacement_scale` as an array [1]."""
        scale = self.displacement_scale(training_step)
        return scale.reshape(1) if isinstance(scale, mx.array) else setting(scale)

    def weights(self, dtype: mx.Dtype = mx.float32) -> CarrierWeights:
        """The parameters for `recur` and `steer`, those of the products in `dtype`; in training their gradients too."""
        layers = [cell.weights(dtype) for cell in self.gru]
        first = layers[0].input
        layers[0] = layers[0]._replace(input=mx.pad(first, [(0, 0), (0, input_size(self.config) - first.shape[1])]))
        energy_in, _, energy_out, _ = self.energy_projection
        move_in, _, move_out = self.displacement_projection
        inner = [linear.dense(dtype) for linear in (energy_in, move_in)]
        return CarrierWeights(
            layers,
            HeadWeights(
                inner=mx.concatenate(inner),
                inner_bias=mx.concatenate([energy_in.bias, move_in.bias]),
                energy_weight=energy_out.dense(energy_out.bias.dtype).reshape(-1),
                displacement_weight=move_out.dense(move_out.bias.dtype),
                out_bias=mx.concatenate([energy_out.bias, move_out.bias]),
            ),
        )

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
            position_history: [N, up to 5, 3] past positions, padded with zeros to 5, or None.

        Raises:
            ValueError: an argument has the wrong shape; names it.
        """
        config = self.config
        flows = neuron_output.shape[0]
        layers, size = config.carrier_num_layers, config.carrier_hidden_size
        expect_shape("neuron_output", neuron_output, (None, config.neuron_output_dim))
        expect_shape("energy", energy, (flows, 1))
        expect_shape("position", position, (flows, 3))
        if noise is not None:
            expect_shape("noise", noise, tuple(position.shape))
        if hidden is None:
            hidden = mx.zeros((layers, flows, size))
        expect_shape("hidden", hidden, (layers, flows, size))

        x = mx.concatenate([neuron_output, energy], axis=1)
        if config.enable_gru_nan_protection:
            x = sanitise(x, config.gru_input_clip_value)
        x = mx.pad(x, [(0, 0), (0, input_size(config) - x.shape[1])])
        weights = self.weights()
        states, _ = recur(weights.layers, x, list(hidden), bounds=hidden_bounds(config))
        g = states[-1]
        if position_history is not None:
            g = self._fuse_history(g, position_history)
        energy, displacement, _ = steer(weights.heads, g, self.scale(training_step))
        raw = raw_move(displacement, position, noise)
        following = bounded(raw)
        return CarrierOutput(energy, following, raw, mx.stack(states), on_plane(following))

    def _fuse_history(self, g: mx.array, history: mx.array) -> mx.array:
        if history.ndim != 3 or history.shape[1] > HISTORY:
            raise ValueError(
                f"position_history: shape {tuple(history.shape)} came, accepted is (N, up to {HISTORY}, 3)"
            )
        expect_shape("position_history", history, (g.shape[0], None, 3))
        history = mx.pad(history, [(0, 0), (0, HISTORY - history.shape[1]), (0, 0)])
        remembered = self.position_memory(history.reshape(g.shape[0], 3 * HISTORY))
        return run(self.history_fusion, mx.concatenate([g, remembered], axis=1))


class HiddenBounds(NamedTuple):
    """Bounds to which the GRU's hidden states are sanitised: at a layer's input and at its output. None: no bound."""

    read: float | None
    left: float | None


def hidden_bounds(config: ModelConfig) -> HiddenBounds:
    """The bounds for hidden states of any origin."""
    if not config.enable_gru_nan_protection:
        return HiddenBounds(None, None)
    return HiddenBounds(config.gru_input_clip_value, config.gru_output_clip_value)


def input_size(config: ModelConfig) -> int:
    """Columns of the first GRU layer's input: F features, the energy, and zeros up to a multiple of 8, a width at which matrix
    products are fast."""
    return -(-(config.neuron_output_dim + 1) // 8) * 8


def recur(
    layers: Sequence[GRUWeights],
    x: mx.array,
    hidden: Sequence[mx.array],
    active: mx.array | None = None,
    *,
    bounds: HiddenBounds,
) -> tuple[list[mx.array], list[tuple[mx.array, mx.array]]]:
    """One time step of an L-layer GRU.

    Args:
        x: [N, input_size], features, energy and zeros, sanitised.
        hidden: L arrays [N, Hd].
        active: [N] bool; where False the hidden states stay as they were. None: all are active.

    Returns:
        The new hidden states, L arrays [N, Hd], and of each layer the two products [N, 3 Hd] behind its gates.
    """
    states, products = [], []
    for layer, state in zip(layers, hidden, strict=True):
        state = state if bounds.read is None else sanitise(state, bounds.read)
        x, behind = gru_step(layer, x, state, active, bound=bounds.left)
        states.append(x)
        products.append(behind)
    return states, products


def steer(weights: HeadWeights, g: mx.array, scale: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The two heads on g [N, Hd].

    Returns:
        energy [N, 1] and displacement [N, 3] (times scale [1], not clipped), float32, and the product [N, A + M] behind both.
    """
    inner = g @ weights.inner.T
    energy, displacement = heads(inner, *weights[1:], scale)
    return energy, displacement, inner
