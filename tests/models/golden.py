"""Loading the golden model and its numbers."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from safetensors.numpy import load_file

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.convert.torch_keys import from_torch

CONFIG = EnergyConfig(
    lattice_width=6,
    lattice_height=5,
    lattice_depth=8,
    displacement_scale=1.0,
    displacement_scale_min=1.0,
    input_embedding_dim_from_teacher=48,
    neuron_hidden_dim=16,
    neuron_output_dim=24,
    carrier_hidden_size=32,
    carrier_num_layers=2,
    text_vocab_size=221,
    text_model_dim=256,
    text_num_heads=8,
    text_feedforward_dim=512,
    spawn_movement_threshold_ratio=0.3,
    max_spawn_per_step=2,
    spawn_capacity=8.0,
)


def torch_state(golden: Path) -> dict[str, np.ndarray]:
    """Every tensor of the golden checkpoint and mapper file, by its torch name."""
    checkpoint = torch.load(golden / "checkpoint.pt", weights_only=True)
    state = {key: value.numpy() for key, value in checkpoint["model_state_dict"].items()}
    encoder = checkpoint["text_encoder_state_dict"]
    state |= {f"text_encoder.{key}": value.numpy() for key, value in encoder.items()}
    return state | load_file(golden / "mapper.safetensors")


def golden_model(golden: Path, **changes: object) -> EnergyFlow:
    """The golden model in evaluation mode, with some fields of its configuration changed."""
    model = EnergyFlow(CONFIG.replace(**changes))
    converted = from_torch(torch_state(golden), model.config)
    model.load_weights([(name, mx.array(item.value)) for name, item in converted.items()])
    model.eval()
    return model
