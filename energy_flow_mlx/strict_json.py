"""JSON files: written without NaN and Infinity, which are no JSON; read with a byte order mark, and in UTF-16, as some editors save."""

import json
import math
import os
from pathlib import Path
from typing import Any

_WORDS = ("NaN", "Infinity", "-Infinity")

def to_json(values: Any, indent: int | None = 1, sort_keys: bool = False) -> str:
    """Strict JSON. Numbers that are not finite become the words NaN, Infinity and -Infinity, which `float` reads.

    Args:
        values: what is written.
        indent: of nested values; None: all on one line.
        sort_keys: so that equal values give equal texts.
    """
    return json.dumps(_finite(values), indent=indent, sort_keys=sort_keys, allow_nan=False)


def write_json(path: Path, values: Any) -> None:
    """Write a file of `to_json`."""
    path.write_text(to_json(values) + "\n", encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds. NaN and Infinity, which other writers leave in JSON, are read as these words.

    Raises:
        ValueError: it does not parse, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=str)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not parse, or holds no object; names the file.
    """
    try:
        values = parse_json(Path(path).read_bytes())  # bytes: the encoding is told by their beginning
    except ValueError as error:
        raise ValueError(f"{path}: does not parse: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds a {type(values).__name__}, accepted is an object")
    return values


def with_numbers(value: Any) -> Any:
    """What `read_json` gave, with the words NaN, Infinity and -Infinity as the numbers that `to_json` was given."""
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and value in _WORDS else value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return next(word for word in _WORDS if str(float(word)) == str(value))
    return value
