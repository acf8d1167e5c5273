"""How a configuration is declared: dataclass fields with a help text and the values they accept.

Command-line flags, YAML and JSON files, `config.json` and the checks all come from these declarations. A field that exists in
the PyTorch implementation keeps its name there.
"""

import dataclasses
import os
import reprlib
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..checks import MOST, did_you_mean
from ..files import write_aside
from ..strict_json import parse_json, write_json

T = TypeVar("T", bound="Fields")

# The version of the files that `to_json` writes. A field that is renamed, or that changes its meaning, makes a new one; a new field,
# which an older version refuses by its name, does not. Files without a version are of the first.
FORMAT_VERSION = 1
_VERSION = "format_version"
_MOST_NAMED = 8  # unknown fields in an error
# Fields of earlier versions whose choice made no difference to a model's results: files that have them are still read.
RETIRED = frozenset({"gru_implementation"})


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
    also: str | None = None,
) -> Any:
    """A dataclass field with its help text and the values it accepts: low <= v <= high, v > above, or one of choices.

    flag: whether the command lines offer it; a field that only files and conversions set has none. also: a shorter flag.
    """
    limits = {"low": low, "high": high, "above": above, "choices": choices}
    metadata = {"help": help, "group": group, **limits, "flag": flag, "also": also}
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
            hints = "; ".join(f"{shown(key)}{did_you_mean(str(key)[:80], names)}" for key in unknown[:_MOST_NAMED])
            everything = "" if "did you mean" in hints else f"\naccepted are:\n{textwrap.fill(', '.join(names), 100)}"
            raise ConfigError(f"{source}: unknown field {hints}{everything}")
        return cls(**values)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write config.json, aside and renamed: every field, and the version of the format."""
        values = {_VERSION: FORMAT_VERSION, **self.to_dict()}
        write_aside(path, lambda aside: write_json(aside, values))

    @classmethod
    def from_json(cls: type[T], path: str | os.PathLike[str]) -> T:
        """Read config.json. A missing file, broken JSON, an unknown field or a newer version raises an error that names the file."""
        return cls.of_file(path, read_fields(path))

    @classmethod
    def of_file(cls: type[T], path: str | os.PathLike[str], values: Mapping[str, Any]) -> T:
        """`from_dict` of the fields in a file, which its errors name."""
        try:
            return cls.from_dict(values, source=str(path))
        except ConfigError as error:
            raise error if str(error).startswith(str(path)) else ConfigError(f"{path}: {error}") from error


def shown(value: Any) -> str:
    """A value as an error shows it: short, although a YAML file can repeat a list in itself any number of times."""
    try:
        return reprlib.repr(value) if isinstance(value, list | dict) else f"{value!r:.200}"
    except ValueError:  # Python writes no whole number of over 4,300 digits
        return "a very large number"


def flag(name: str) -> str:
    """The flag of a field: lattice_width -> --lattice-width."""
    return "--" + name.replace("_", "-")


def field_names(config: type[Fields]) -> set[str]:
    """The names of the fields of a configuration class."""
    return {each.name for each in dataclasses.fields(config)}


def read_fields(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields in a configuration file, without the version of its format.

    Raises:
        ConfigError, FileNotFoundError: as `read_mapping`; also for a newer version, which is named beside the one that is read.
    """
    values = read_mapping(path)
    version = values.pop(_VERSION, FORMAT_VERSION)
    if type(version) is not int or version < 1:
        raise ConfigError(f"{path}: {_VERSION}={shown(version)} is not accepted: it takes a whole number from 1 to {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"{path}: is of {_VERSION} {version}, this energy_flow_mlx reads up to {FORMAT_VERSION}: a newer one wrote it, install that"
        )
    return values


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
        data = path.read_bytes()  # bytes: the encoding is told by their beginning
        values = parse_json(data) if path.suffix == ".json" else _parse_yaml(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: does not parse: {error}") from error
    if values is None:
        raise ConfigError(f"{path}: is empty; accepted is a mapping of field names to values")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}; accepted is a mapping of field names to values")
    return values


def _parse_yaml(data: bytes) -> Any:
    """What a YAML text holds. YAML 1.1 reads 1e-4 as text; `_checked` makes numbers of it."""
    import yaml  # a model needs none: the package imports without it

    try:
        return yaml.safe_load(data)
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
    refusal = ConfigError(f"{field.name}={shown(value)} is not accepted: it takes {accepted(field)}")
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
    if not isinstance(value, int | float) or not -sys.float_info.max <= value <= sys.float_info.max:
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
