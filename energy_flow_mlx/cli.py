"""Command-line flags, made from the fields of EnergyConfig."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .config import PRESETS, EnergyConfig, accepted, read_mapping


class Parser(argparse.ArgumentParser):
    """Prints `error: …` and exits 2; options are never guessed from a beginning."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n(see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def flag(name: str) -> str:
    """The flag of a field: lattice_width -> --lattice-width."""
    return "--" + name.replace("_", "-")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """--preset, --config, and a flag for every field, in the groups of the fields' metadata."""
    names = ", ".join(PRESETS)
    parser.add_argument("--preset", metavar="NAME", help=f"what the values start from: {names} (default: {PRESETS[0]})")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a .yaml or .json file of fields, over the preset")
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(EnergyConfig):
        name = field.metadata["group"]
        group = groups.setdefault(name, None) or parser.add_argument_group(name)
        groups[name] = group
        text = f"{field.metadata['help']} ({accepted(field)}; tiny: {field.default})".replace("%", "%%")
        # Absent flags leave no attribute: what was given is told apart from defaults. Values stay text, which
        # EnergyConfig converts and checks, so that a flag and a file get the same error.
        if field.type is bool:
            group.add_argument(
                flag(field.name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            group.add_argument(flag(field.name), default=argparse.SUPPRESS, metavar=_METAVARS[field.type], help=text)


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that flags were given for."""
    names = {field.name for field in dataclasses.fields(EnergyConfig)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def layered_config(preset: str | None, file: Path | None, fields: Mapping[str, Any]) -> EnergyConfig:
    """The preset, then the file, then the flags.

    Raises:
        ConfigError: a value or a key is not accepted, or the file does not parse.
        FileNotFoundError: there is no such file.
    """
    values = EnergyConfig.preset(preset or PRESETS[0]).to_dict()
    if file is not None:
        values.update(read_mapping(file))
    # Checked once, when all are together: a file's value may be in range only together with a flag's.
    return EnergyConfig.from_dict({**values, **fields}, source=str(file or "flags"))


_METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "NAME"}
