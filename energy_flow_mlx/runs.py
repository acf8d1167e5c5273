"""A run folder as an object: its configuration, its metrics as arrays, and its model."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .config import EnergyConfig
from .files import resolve
from .metrics import Metrics, columns, read_lines
from .models.energy_flow import EnergyFlow


@dataclass(frozen=True)
class Run:
    """What a training left in its folder."""

    folder: Path
    config: EnergyConfig

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Run":
        """The run in a folder that training wrote.

        Raises:
            FileNotFoundError: there is no config.json.
            ConfigError: it does not hold a configuration.
        """
        folder = Path(folder)
        return cls(folder, EnergyConfig.from_json(resolve(folder, "config.json")))

    @property
    def metrics(self) -> Metrics:
        """metrics.jsonl as it stands: arrays [lines] by name, in step with "step"; NaN where a line has no such number.

        Raises:
            FileNotFoundError: there is none yet.
            ValueError: a line does not parse.
        """
        return columns(read_lines(self.folder))

    @cached_property
    def model(self) -> EnergyFlow:
        """The model of the last checkpoint, loaded when first asked for."""
        return EnergyFlow.from_pretrained(self.folder)
