"""Small models for tests: a few cells, narrow modules, and flows that travel."""

import mlx.core as mx
import numpy as np

from energy_flow_mlx import EnergyConfig, EnergyFlow

SMALL = EnergyConfig(
    lattice_width=4,
    lattice_height=3,
    lattice_depth=6,
    displacement_scale=1.0,
    displacement_scale_min=1.0,
    input_embedding_dim_from_teacher=10,
    neuron_hidden_dim=6,
    neuron_output_dim=5,
    carrier_hidden_size=8,
    carrier_num_layers=2,
    text_vocab_size=20,
    text_model_dim=8,
    text_num_heads=2,
    text_feedforward_dim=12,
    text_max_length=6,
    text_max_positions=9,
    train_pairs=8,
    batch_size=3,
)


def lively_model(seed: int = 0, factor: float = 6.0, **changes: object) -> EnergyFlow:
    """A small model in evaluation mode whose flows move far: some arrive, some hit the walls, some do neither."""
    mx.random.seed(seed)
    model = EnergyFlow(SMALL.replace(**changes))
    for layer in model.carrier.gru:
        layer.b = mx.zeros_like(layer.b)  # from the start an update gate of 2 would hold the flows back
    head = model.carrier.displacement_projection[2]
    head.weight = factor * head.weight
    model.eval()
    return model


def random_surface(batch: int, cells: int, seed: int = 0) -> mx.array:
    """[batch, cells] in [-1, 1]."""
    return mx.array(np.random.default_rng(seed).uniform(-1, 1, (batch, cells)).astype(np.float32))
