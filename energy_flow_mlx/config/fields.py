"""How a configuration is declared: dataclass fields with a help text and the values they accept.

Command-line flags, YAML and JSON files, `config.json` and the checks all come from these declarations. A field that exists in
the PyTorch implementation keeps its name there.
"""

import dataclasses
import json
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..checks import did_you_mean
from ..files import write_aside

T = TypeVar("T", bound="Fields")

# Fields of earlier versions whose choice made no difference to a model's results: files that have them are still read.
RETIRED = frozenset({"gru_implementation"})
MOST = 2**31 - 1  # of every whole number: devices count in 32 bits


class ConfigError(ValueError):
    """A configuration value that is unknown, of the wrong type or out of range; the text names field, value and what is accepted."""


def field(
    default: Any,
    help: str,
    *,
    group: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    flag: bool = True,
) -> Any:
    """A dataclass field with its help text and the values it accepts: low <= v <= high, v > above, or one of choices.

    flag: whether the command lines offer it; a field that only files and conversions set has none.
    """
    metadata = {"help": help, "group": group, "low": low, "high": high, "above": above, "choices": choices, "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Fields:
    """A flat set of fields, each checked and converted to its type on construction."""

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            object.__setattr__(self, each.name, _checked(each, getattr(self, each.name)))

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields changed, checked anew. Unknown names raise ConfigError."""
        return self.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], source: str = "configuration") -> T:
        """The configuration with these fields set and the defaults elsewhere; an unknown key raises ConfigError."""
        names = [each.name for each in dataclasses.fields(cls)]
        values = {key: value for key, value in values.items() if key not in RETIRED}
        unknown = [key for key in values if key not in names]
        if unknown:
            hints = "; ".join(f"{str(key)!r}{did_you_mean(str(key), names)}" for key in unknown)
            everything = "" if "did you mean" in hints else f"\naccepted are:\n{textwrap.fill(', '.join(names), 100)}"
            raise ConfigError(f"{source}: unknown field {hints}{everything}")
        return cls(**values)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write config.json, aside and renamed."""
        text = json.dumps(self.to_dict(), indent=1) + "\n"
        write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))

    @classmethod
    def from_json(cls: type[T], path: str | os.PathLike[str]) -> T:
        """Read config.json. A missing file, broken JSON or an unknown field raises an error that names the file."""
        return cls.from_dict(read_mapping(path), source=str(path))


def field_names(config: type[Fields]) -> set[str]:
    """The names of the fields of a configuration class."""
    return {each.name for each in dataclasses.fields(config)}


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a .json, .yaml or .yml file.

    Raises:
        ConfigError: another ending, text that does not parse, or something else than a mapping; names the file.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"{path}: a configuration file ends in .json, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else _parse_yaml(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: does not parse: {error}") from error
    if values is None:
        raise ConfigError(f"{path}: is empty; accepted is a mapping of field names to values")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}; accepted is a mapping of field names to values")
    return values


def _parse_yaml(text: str) -> Any:
    """What a YAML text holds. YAML 1.1 reads 1e-4 as text; `_checked` makes numbers of it."""
    import yaml  # a model needs none: the package imports without it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def accepted(field: "dataclasses.Field[Any]") -> str:
    """In words, the values a field accepts: 'a whole number from 2', 'one of nearest, bilinear', …"""
    bounds = field.metadata
    if field.type is bool:
        return "true or false"
    if field.type is str:
        return f"one of {', '.join(bounds['choices'])}" if bounds["choices"] else "text"
    words = "a whole number" if field.type is int else "a number"
    if bounds["low"] is not None:
        words += f" from {bounds['low']}"
    if bounds["above"] is not None:
        words += f" above {bounds['above']}"
    if bounds["high"] is not None:
        words += f" up to {bounds['high']}"
    return words


def _checked(field: "dataclasses.Field[Any]", value: Any) -> Any:
    """The value in the field's type, or a ConfigError that says what came and what is accepted."""
    refusal = ConfigError(f"{field.name}={value!r} is not accepted: it takes {accepted(field)}")
    if field.type is bool:
        if not isinstance(value, bool):
            raise refusal
        return value
    if field.type is str:
        if (
            not isinstance(value, str)
            or not value
            or (field.metadata["choices"] and value not in field.metadata["choices"])
        ):
            raise refusal
        return value
    if isinstance(value, bool):
        raise refusal
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise refusal from None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise refusal
    if field.type is int:
        if value != int(value):
            raise refusal
        value = int(value)
    else:
        value = float(value)
    low, high, above = (field.metadata[name] for name in ("low", "high", "above"))
    if (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
    ):
        raise refusal
    if field.type is int and abs(value) > MOST:
        raise ConfigError(f"{field.name}={value} is not accepted: whole numbers go up to {MOST}")
    return value
