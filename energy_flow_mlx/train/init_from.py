"""A new run that starts from the weights of a model instead of random ones."""

from typing import Any

import mlx.core as mx

from ..config import ConfigError, EnergyConfig, ModelConfig, field_names, flag, read_config
from ..files import resolve
from ..models.energy_flow import EnergyFlow, model_folder
from ..nn import blank_weights
from .optimiser import named_arrays

# What the weights are made for: their sizes, and what gives them their meaning.
ARCHITECTURE = (
    "lattice_width", "lattice_height", "input_embedding_dim_from_teacher", "neuron_hidden_dim", "neuron_output_dim", "carrier_hidden_size",
    "carrier_num_layers", "input_residual", "text_vocab_size", "text_model_dim", "text_num_heads", "text_feedforward_dim", "text_num_layers",
    "text_max_positions",
)  # fmt: skip


def model_fields(init_from: str) -> dict[str, Any]:
    """The fields that the model has which a run starts from.

    Args:
        init_from: a folder or OWNER/NAME of the hub.

    Raises:
        FileNotFoundError: there is no model, or the download failed.
        ValueError: it is none; names the file.
    """
    fields = read_config(resolve(model_folder(init_from), "config.json")).to_dict()
    return {name: fields[name] for name in field_names(ModelConfig)}


def initial_model(config: EnergyConfig) -> EnergyFlow:
    """A model of `config` with the weights and the tokeniser of `config.init_from`, and no training steps behind it.

    Raises:
        ConfigError: its architecture is another one, field by field, or its weights are quantised.
        FileNotFoundError, ValueError: as `EnergyFlow.from_pretrained`.
    """
    source = EnergyFlow.from_pretrained(config.init_from)
    if source.quantised_bits:
        raise ConfigError(f"init_from={config.init_from}: its weights are quantised to {source.quantised_bits} bits; accepted are models that are not")
    pairs = ((name, getattr(config, name), getattr(source.config, name)) for name in ARCHITECTURE)
    differing = [f"{flag(name)} {here} ({there} in that model)" for name, here, there in pairs if here != there]
    if differing:
        raise ConfigError(f"init_from={config.init_from}: the weights of that model cannot take {', '.join(differing)}")
    with blank_weights():
        model = EnergyFlow(config)
    model.load_weights([(name, array.astype(mx.float32)) for name, array in named_arrays(source.parameters()).items()])
    model.text_encoder.tokeniser = source.text_encoder.tokeniser
    return model
