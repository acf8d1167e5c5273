"""EnergyConfig: all fields of a model and a run in one flat configuration, as in flags, YAML files and config.json."""

import os
import shlex
from dataclasses import dataclass
from typing import Any

from ..showing import html_table
from .fields import RETIRED, ConfigError, field_names, flag, read_fields
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

    def changes(self) -> tuple[str, dict[str, Any]]:
        """The preset that is nearest to this configuration, and the fields that differ from it."""
        values = self.to_dict()

        def changed(preset: str) -> dict[str, Any]:
            start = EnergyConfig.preset(preset).to_dict()
            return {name: value for name, value in values.items() if value != start[name]}

        nearest = min(PRESETS, key=lambda name: len(changed(name)))
        return nearest, changed(nearest)

    def command(self) -> str:
        """The command that trains a model of this configuration."""
        preset, changed = self.changes()
        words = ["python", "-m", "energy_flow_mlx.train", "--preset", preset]
        for name, value in changed.items():
            if isinstance(value, bool):
                words.append(flag(name) if value else flag(f"no_{name}"))
            else:
                words += [flag(name), str(value)]
        return shlex.join(words)

    def _repr_html_(self) -> str:
        preset, changed = self.changes()
        start = EnergyConfig.preset(preset).to_dict()
        rows = [[name, str(value), str(start[name])] for name, value in changed.items()]
        return html_table(rows, ["", "here", f"preset {preset}"]) if rows else f"<em>the preset {preset}</em>"


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The configuration in a config.json: an `EnergyConfig` if any field of a run is in it, else a `ModelConfig`.

    Raises:
        ConfigError: the file does not parse, or a field is unknown or not accepted; names the file.
        FileNotFoundError: there is no such file.
    """
    values = read_fields(path)
    whole = not (field_names(ModelConfig) | RETIRED).issuperset(values)
    return (EnergyConfig if whole else ModelConfig).of_file(path, values)
