"""metrics.jsonl of a run folder: a line for each report, read as it is or as arrays."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .strict_json import parse_json

FILE = "metrics.jsonl"
Metrics = Mapping[str, NDArray[np.float64]]


def read_lines(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines; an incomplete last line, which a killed process leaves, is skipped.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: another line does not parse, or is no object with a step; names it.
    """
    path = Path(run) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it is in the folder of a run")
    metrics = []
    for count, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what follows the last newline is unfinished
        try:
            values = parse_json(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {count} is not JSON: {error}") from error
        if not isinstance(values, dict) or type(values.get("step")) is not int:
            raise ValueError(f"{path}: line {count} is no object with a step")
        metrics.append(values)
    return metrics


def columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Arrays [lines] by name, among them "step"; NaN where a line does not have that number."""
    names = dict.fromkeys(["step", *(name for line in lines for name in line)])
    return {name: np.array([line.get(name) for line in lines], dtype=np.float64) for name in names}
