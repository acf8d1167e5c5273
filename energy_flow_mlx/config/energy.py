"""The whole configuration, flat, as flags, YAML files and config.json have it; and the presets."""

import os
from dataclasses import dataclass
from typing import Any, cast

from .fields import RETIRED, ConfigError, field_names, read_mapping
from .model import ModelConfig
from .run import RunConfig


# A dataclass collects the fields of its last base first: the model's stand before the run's.
@dataclass(frozen=True, kw_only=True)
class EnergyConfig(RunConfig, ModelConfig):
    """Everything that defines a model and a run.

    Raises:
        ConfigError: a value has the wrong type or is out of range, or two fields contradict each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_max_length > self.text_max_positions:
            raise ConfigError(
                f"text_max_length={self.text_max_length} is over text_max_positions={self.text_max_positions}: accepted are 3 to text_max_positions"
            )

    @classmethod
    def tiny(cls) -> "EnergyConfig":
        """8x8x8, learns the built-in pairs in minutes on a laptop CPU."""
        # With moves of full length untrained flows crowd into a few cells, and what they carry is averaged away.
        return cls(
            displacement_scale=0.25, displacement_scale_min=0.25, surface_loss_weight=0.1, learning_rate=1e-3,
            batch_size=16, training_steps=500, validation_pairs=400,
        )  # fmt: skip

    @classmethod
    def debug(cls) -> "EnergyConfig":
        """20x20x10, the reference's preset for checking a setup."""
        return cls(
            lattice_width=20, lattice_height=20, lattice_depth=10, batch_size=8, carrier_hidden_size=256, carrier_num_layers=2,
            spawn_movement_threshold_ratio=0.15, use_exploration_noise=True, **_REFERENCE,
        )  # fmt: skip

    @classmethod
    def experiment(cls) -> "EnergyConfig":
        """28x28x40, the reference's preset for research runs."""
        # A child takes a move of at least 2t = 1.0. The longest without noise is sqrt(3)/2, so room for a sixteenth is ample.
        return cls(
            lattice_width=28, lattice_height=28, lattice_depth=40, batch_size=16, gradient_accumulation_steps=4, carrier_hidden_size=512,
            carrier_num_layers=3, spawn_movement_threshold_ratio=0.5, spawn_capacity=1 / 16, use_exploration_noise=True, **_REFERENCE,
        )  # fmt: skip

    @classmethod
    def optimized(cls) -> "EnergyConfig":
        """100x100x50, the reference's full-size preset."""
        return cls(
            lattice_width=100, lattice_height=100, lattice_depth=50, batch_size=32, carrier_hidden_size=1024, carrier_num_layers=3,
            spawn_movement_threshold_ratio=0.1, max_spawn_per_step=3, spawn_capacity=0.5, use_exploration_noise=True,
            exploration_noise=0.1, gradient_checkpointing=True, **_REFERENCE,
        )  # fmt: skip

    @classmethod
    def preset(cls, name: str) -> "EnergyConfig":
        """The preset of that name: tiny, debug, experiment or optimized."""
        if name not in PRESETS:
            raise ConfigError(f"preset={name!r} is unknown: accepted are {', '.join(PRESETS)}")
        return cast(EnergyConfig, getattr(cls, name)())


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The configuration in a config.json: an `EnergyConfig` if any field of a run is in it, else a `ModelConfig`.

    Raises:
        ConfigError: the file does not parse, or a field is unknown or not accepted; names the file.
        FileNotFoundError: there is no such file.
    """
    values = read_mapping(path)
    whole = not (field_names(ModelConfig) | RETIRED).issuperset(values)
    return (EnergyConfig if whole else ModelConfig).from_dict(values, source=str(path))


# What the reference's presets share: full-size modules and the reference's optimiser settings.
_REFERENCE: dict[str, Any] = dict(
    movement_based_spawn=True, neuron_hidden_dim=32, neuron_output_dim=64, text_vocab_size=4000, text_model_dim=256, text_num_heads=8,
    text_feedforward_dim=512, text_max_length=64, learning_rate=1e-4, warmup_steps=100, learning_rate_schedule="plateau",
    gradient_clip_per_tensor=1.0, max_active_flows=10_000_000,
)  # fmt: skip

PRESETS = ("tiny", "debug", "experiment", "optimized")
