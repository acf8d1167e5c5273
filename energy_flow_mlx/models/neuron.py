"""SimpleNeuron: what a flow feels at its place."""

import math

import mlx.core as mx
import mlx.nn as nn

from ..nn import Linear
from ..ops.neuron import neuron
from .shapes import expect_shape


class SimpleNeuron(nn.Module):
    """Position and energy of a flow to features; one set of weights for the whole lattice.

        Linear(3, 3)(position), energy -> Linear(4, h) LN GELU -> Linear(h, h) LN GELU -> Linear(h, F)

    Args:
        hidden_dim: h.
        output_dim: F.
    """

    def __init__(self, hidden_dim: int = 32, output_dim: int = 64) -> None:
        super().__init__()
        # The PyTorch module maps to 12 coordinates and uses 3; conversion folds the cut, and its second normalisation.
        self.coord_encoder = Linear(3, 3)
        self.layers = [
            Linear(4, hidden_dim), nn.LayerNorm(hidden_dim), nn.GELU(),
            Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.GELU(),
            Linear(hidden_dim, output_dim),
        ]  # fmt: skip
        for linear in (self.coord_encoder, *self.layers[::3]):
            deviation = math.sqrt(2.0 / linear.weight.shape[0])  # Kaiming, fan_out
            linear.weight = deviation * mx.random.normal(linear.weight.shape)
            linear.bias = mx.zeros_like(linear.bias)

    def weights(self) -> list[mx.array]:
        """The parameters in the order of `ops.neuron`: twelve arrays."""
        first, norm, _, second, second_norm, _, last = self.layers

        def of(linear: nn.Module) -> tuple[mx.array, mx.array]:
            return linear.dense(linear.bias.dtype), linear.bias

        norms = [(layer.weight, layer.bias) for layer in (norm, second_norm)]
        return [*of(self.coord_encoder), *of(first), *norms[0], *of(second), *norms[1], *of(last)]

    def __call__(self, position: mx.array, energy: mx.array) -> mx.array:
        """position [N, 3] in [-1, 1] (already normalised), energy [N, 1] -> features [N, F]."""
        expect_shape("position", position, (None, 3))
        expect_shape("energy", energy, (position.shape[0], 1))
        return neuron(position, energy, self.weights())
