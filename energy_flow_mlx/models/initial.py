"""Initial weights with which an untrained flow already carries its energy to the plane z = -1.

From the reference's initial weights hardly any flow arrives, and what arrives has lost its energy: the loss has to discover
transport before it can learn anything else. With these weights training starts from transport, and can change it.
"""

import mlx.core as mx
import mlx.nn as nn

from ..config import ModelConfig
from .carrier import EnergyCarrier
from .mapper import EmbeddingMapper

UNIT = 0  # the hidden unit of every GRU layer that holds the energy
FORGET = -8.0  # bias of its update gate: the unit takes its candidate, 0.9997 of it
GAIN = 0.5  # the unit holds tanh(GAIN energy): nearly linear for energies in [-1, 1]
READ = 4.0  # GELU(READ x) - GELU(-READ x) = READ x exactly
MARGIN = 1.02  # of the distance to the plane, covered by all steps together
SCALE = 0.25  # of the surface that flows start from


def carry_energy(mapper: EmbeddingMapper, carrier: EnergyCarrier, config: ModelConfig) -> None:
    """Set weights so that a flow keeps its energy e and moves straight to the plane z = -1.

        GRU, each layer:   g = tanh(GAIN e), without a memory
        energy head:       tanh(2 tanh(e / 2)), and nothing of other hidden units
        displacement head: (0, 0, -speed)
        mapper:            its surface is multiplied by SCALE

    The scale keeps energies where tanh is nearly linear: each step takes 5/12 e³ off an energy, so that after the 20 steps of a deep
    lattice energies from 0.4 to 1 would all end between 0.19 and 0.24. Other hidden units start without a say in energy
    and displacement, but not without a gradient: what they add at random would turn the sign of a small energy within some steps.

    All flows go to one plane. Were the energy's sign to choose between the two, flows whose energy is near 0 would go nowhere, and
    training changes which ones those are.

    The speed takes a flow from the centre plane to the plane in D // 2 steps. A lattice with D < 4 is too shallow for that: a step is
    at most 0.5. All other weights stay as they are.
    """
    mapper.energy_scale = mx.array([SCALE])
    size = config.carrier_hidden_size
    energy_column = config.neuron_output_dim  # of the first layer's input, behind the features
    for number, layer in enumerate(carrier.gru):
        update, candidate = size + UNIT, 2 * size + UNIT
        source = energy_column if number == 0 else UNIT
        layer.Wx[update] = 0.0
        layer.Wx[candidate] = 0.0
        layer.Wx[candidate, source] = GAIN if number == 0 else 1.0
        layer.Wh[update] = 0.0
        layer.Wh[candidate] = 0.0
        layer.b[update] = FORGET
        layer.b[candidate] = 0.0

    inner, _, outer, _ = carrier.energy_projection
    outer.weight = mx.zeros_like(outer.weight)
    for row, sign in enumerate((1.0, -1.0)):
        _read_unit(inner, row, sign * READ, 0.0)
        outer.weight[0, row] = sign / (READ * GAIN)

    *_, outer = carrier.displacement_projection
    outer.weight = mx.zeros_like(outer.weight)
    start = abs(2 * (config.lattice_depth // 2) / config.lattice_depth - 1)  # z of the centre plane: not 0 where D is odd
    speed = MARGIN * (1 + start) / config.flow_steps / config.displacement_scale
    outer.bias[2] = -speed


def _read_unit(linear: nn.Module, row: int, slope: float, bias: float) -> None:
    """Make a row of a head's first layer slope * (the energy's hidden unit) + bias."""
    linear.weight[row] = 0.0
    linear.weight[row, UNIT] = slope
    linear.bias[row] = bias
