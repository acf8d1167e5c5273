"""EnergyConfig: all fields of a model and a run in one flat configuration, as in flags, YAML files and config.json."""

import os
from dataclasses import dataclass

from .fields import RETIRED, ConfigError, field_names, read_fields
from .model import ModelConfig
from .presets import PRESETS
from .run import RunConfig


# A dataclass collects the fields of its last base first: the model's stand before the run's.
@dataclass(frozen=True, kw_only=True)
class EnergyConfig(RunConfig, ModelConfig):
    """Everything that defines a model and a run. What the commands call the default is the preset `tiny`; `EnergyConfig()` is no
    preset, see `ModelConfig`.

    Raises:
        ConfigError: a value has the wrong type or is out of range, or two fields contradict each other.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_max_length > self.text_max_positions:
            raise ConfigError(
                f"text_max_length={self.text_max_length} is over text_max_positions={self.text_max_positions}: accepted are 3 to text_max_positions"
            )
        if self.pairs == "copy" and self.input_residual:
            raise ConfigError(
                "pairs=copy is not accepted with input_residual, which adds the input to the output: there would be nothing left to copy "
                "through the lattice; accepted is input_residual=false (--no-input-residual)"
            )

    @classmethod
    def tiny(cls) -> "EnergyConfig":
        """8x8x8 with narrow layers: learns the built-in pairs in two minutes on two CPU cores."""
        return cls.preset("tiny")

    @classmethod
    def debug(cls) -> "EnergyConfig":
        """20x20x10, for checking a setup."""
        return cls.preset("debug")

    @classmethod
    def experiment(cls) -> "EnergyConfig":
        """28x28x40, for research runs."""
        return cls.preset("experiment")

    @classmethod
    def optimized(cls) -> "EnergyConfig":
        """100x100x50, full size."""
        return cls.preset("optimized")

    @classmethod
    def preset(cls, name: str) -> "EnergyConfig":
        """The preset of that name, one of `PRESETS`."""
        if name not in PRESETS:
            raise ConfigError(f"preset={name!r} is unknown: accepted are {', '.join(PRESETS)}")
        return cls(**PRESETS[name])


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The configuration in a config.json: an `EnergyConfig` if any field of a run is in it, else a `ModelConfig`.

    Raises:
        ConfigError: the file does not parse, or a field is unknown or not accepted; names the file.
        FileNotFoundError: there is no such file.
    """
    values = read_fields(path)
    whole = not (field_names(ModelConfig) | RETIRED).issuperset(values)
    return (EnergyConfig if whole else ModelConfig).of_file(path, values)
