"""Command-line flags, generated from the fields of EnergyConfig."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .config import PRESETS, EnergyConfig, accepted, read_mapping


class Parser(argparse.ArgumentParser):
    """A parser whose errors print `error: …` and exit with code 2. Options cannot be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; where a shell asks for completions, they are all that the process gives."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n(see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def flag(name: str) -> str:
    """The flag of a field: lattice_width -> --lattice-width."""
    return "--" + name.replace("_", "-")


def add_config_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
    """--preset, --config, and a flag for every field, in the groups of the fields' metadata. The help shows each field's value in the
    preset that `argv` (None: the command line) names."""
    names = ", ".join(PRESETS)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", nargs="?")
    preset = early.parse_known_args(argv)[0].preset
    shown = preset if preset in PRESETS else "tiny"  # another name is refused later, by name
    values = EnergyConfig.preset(shown).to_dict()
    parser.add_argument("--preset", metavar="NAME", help=f"what the values start from: {names} (default: tiny)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a .yaml or .json file of fields, over the preset")
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(EnergyConfig):
        name = field.metadata["group"]
        group = groups.setdefault(name, None) or parser.add_argument_group(name)
        groups[name] = group
        text = f"{field.metadata['help']} ({accepted(field)}; {shown}: {values[field.name]})".replace("%", "%%")
        # SUPPRESS: a flag that is not given leaves no attribute, so that it does not override the preset or the file.
        # Values stay text; EnergyConfig converts and checks them, so that a flag and a file give the same errors.
        if field.type is bool:
            group.add_argument(
                flag(field.name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
            )
        else:
            group.add_argument(flag(field.name), default=argparse.SUPPRESS, metavar=_METAVARS[field.type], help=text)


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields whose flags were given, with their values."""
    names = {field.name for field in dataclasses.fields(EnergyConfig)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def layered_config(preset: str | None, file: Path | None, fields: Mapping[str, Any]) -> EnergyConfig:
    """The configuration from preset, file and flags, each overriding the one before.

    Raises:
        ConfigError: a value or a key is not accepted, or the file does not parse.
        FileNotFoundError: there is no such file.
    """
    values = EnergyConfig.preset(preset or "tiny").to_dict()
    if file is not None:
        values.update(read_mapping(file))
    # Checked only once all are merged, because a value of the file may be valid only together with a flag's.
    return EnergyConfig.from_dict({**values, **fields}, source=str(file or "flags"))


_METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "NAME"}
