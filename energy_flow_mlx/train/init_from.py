"""A new run that starts from the weights of a model instead of random ones."""

import os
from typing import Any

import mlx.core as mx

from ..cli import layered_config
from ..config import ConfigError, EnergyConfig, ModelConfig, field_names, flag, read_config
from ..files import resolve
from ..models.energy_flow import EnergyFlow
from ..models.energy_flow_files import model_folder
from ..nn import blank_weights
from .loss import number

# What the weights are made for: their sizes, and what gives them their meaning.
ARCHITECTURE = (
    "lattice_width", "lattice_height", "input_embedding_dim_from_teacher", "neuron_hidden_dim", "neuron_output_dim", "carrier_hidden_size",
    "carrier_num_layers", "input_residual", "text_vocab_size", "text_model_dim", "text_num_heads", "text_feedforward_dim", "text_num_layers",
    "text_max_positions",
)  # fmt: skip
_SCHEDULE = tuple(name for name in sorted(field_names(ModelConfig)) if name.startswith("displacement_"))


def model_fields(init_from: str) -> dict[str, Any]:
    """The fields in the config.json of the model that a run starts from: of a run all, else those of a model.

    Args:
        init_from: a folder or OWNER/NAME of the hub.

    Raises:
        FileNotFoundError: there is no model, or the download failed.
        ValueError: it is none; names the file.
    """
    return read_config(resolve(model_folder(init_from), "config.json")).to_dict()


def starting_from(init_from: str | os.PathLike[str], **fields: Any) -> EnergyConfig:
    """The configuration of a new run that starts from a model: that of the model's own run, with these fields changed.

    Args:
        init_from: a run, a model's folder or OWNER/NAME of the hub.
        fields: as flags have them, such as part="decoder", training_steps=1000.

    Raises:
        ConfigError: a field is not accepted. Or as `model_fields`.
    """
    return layered_config(None, None, {"init_from": os.fspath(init_from), **fields}, model_fields)


def initial_model(config: EnergyConfig) -> tuple[EnergyFlow, EnergyConfig]:
    """A model of `config` with the weights, tokeniser, text decoder and corrector of `config.init_from`, and no training steps behind it;
    and `config`, in which flows move as far as the other model's training ended with, unless it has a schedule of its own.

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
    if all(getattr(config, name) == getattr(source.config, name) for name in _SCHEDULE):
        scale = number(mx.array(source.carrier.displacement_scale(source.trained_steps)))
        config = config.replace(displacement_scale=scale, displacement_scale_min=scale)
    mx.random.seed(config.seed)  # for parts that are added to it
    with blank_weights():
        model = EnergyFlow(config)
    model.load_weights([(name, array.astype(mx.float32)) for name, array in source.flow_parameters().items()])
    model.text_encoder.tokeniser = source.text_encoder.tokeniser
    model.text_decoder, model.text_corrector = source.text_decoder, source.text_corrector
    return model, config
