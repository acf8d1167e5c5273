"""A run folder as an object: its configuration, its metrics as arrays, its results and its model."""

import html
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .config import EnergyConfig
from .files import resolve
from .metrics import Metrics, columns, read_lines
from .models.energy_flow import EnergyFlow
from .results import FILE, Results
from .scores import Evaluation
from .showing import html_picture, png


@dataclass(frozen=True)
class Run:
    """What a training left in its folder. In a notebook it shows its results, its settings and its curves."""

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
        path = resolve(folder, "config.json")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: accepted is the folder of a run")
        return cls(folder, EnergyConfig.from_json(path))

    @property
    def metrics(self) -> Metrics:
        """metrics.jsonl as it stands: arrays [lines] by name, in step with "step"; NaN where a line has no such number.

        Raises:
            FileNotFoundError: there is none yet.
            ValueError: a line does not parse.
        """
        return columns(read_lines(self.folder))

    @property
    def results(self) -> Results:
        """results.json as it stands: the scores on every split, and what made them.

        Raises:
            FileNotFoundError: there is none yet; says what writes it.
            ValueError: it holds something else.
        """
        return Results.load(self.folder)

    @property
    def evaluation(self) -> Evaluation:
        """The model's scores on the test split; raises as `results`."""
        return self.results.evaluation

    @cached_property
    def model(self) -> EnergyFlow:
        """The model of the last checkpoint, loaded when first asked for."""
        return EnergyFlow.from_pretrained(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_png_(self) -> bytes:
        """The curves, for notebooks."""
        from .plot import training

        return png(training(self))

    def _repr_html_(self) -> str:
        scores = self.results._repr_html_() if (self.folder / FILE).is_file() else "<em>it has no results yet</em>"
        curves = html_picture(self._repr_png_(), "cosine, arrivals and loss by training step")
        return f"<div>{html.escape(str(self.folder))}</div>{scores}{self.config._repr_html_()}{curves}"
