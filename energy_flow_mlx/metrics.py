"""metrics.jsonl of a run folder: a line for each report, read as it is or as arrays."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "metrics.jsonl"
Metrics = Mapping[str, NDArray[np.float64]]


def read_lines(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines; an incomplete last line, which a killed process leaves, is skipped.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: another line does not parse; names it.
    """
    path = Path(run) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it is in the folder of a run")
    metrics = []
    for count, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):  # what follows the last newline is unfinished
        try:
            metrics.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}: line {count} is not JSON: {error}") from error
    return metrics


def columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Arrays [lines] by name, among them "step"; NaN where a line does not have that number."""
    names = dict.fromkeys(["step", *(name for line in lines for name in line)])
    return {name: np.array([line.get(name) for line in lines], dtype=np.float64) for name in names}
