"""What the command lines share: flags generated from the fields of EnergyConfig, errors, signals, outputs that break."""

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .checks import did_you_mean
from .config import NOTHING, PART_PRESETS, PRESETS, EnergyConfig, ModelConfig, accepted, field_names, flag, read_fields
from .distributed import ALONE, World
from .ops.failures import KernelError, kernel_errors

Errors = tuple[type[BaseException], ...]
HANGUP = getattr(signal, "SIGHUP", None)


class Help(argparse.HelpFormatter):
    """Help whose words stay whole in a narrow terminal."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent("\n".join(self._split_lines(text, width)), indent)


class Parser(argparse.ArgumentParser):
    """A parser whose errors print `error: …` and exit with code 2. Options cannot be abbreviated; of one that it does not have it
    says which ones are like it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": Help, **options})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; where a shell asks for completions, they are all that the process gives."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)
        parsed, unknown = self.parse_known_args(args, namespace)
        options = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        if options:
            self.error("; ".join(map(self._unknown, options)))
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n(see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # argparse takes the value of --flag=-- for the mark that ends the options, and gives the flag an empty list.
        if action.option_strings and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "expected a value, got '--'")
        return super()._get_values(action, arg_strings)

    def _unknown(self, option: str) -> str:
        """What to say of an option that the parser did not take."""
        owners = [name for name, parser in self._subcommands() if option in parser._known()]
        if owners:
            return f"{option} is an option of {' and '.join(owners)}, and stands after that word"
        return f"unknown option {option}{did_you_mean(option, self._known())}"

    def _known(self) -> list[str]:
        """The long options, also those of subcommands."""
        known = [word for action in self._actions for word in action.option_strings if word.startswith("--")]
        known += [word for _, parser in self._subcommands() for word in parser._known()]
        return list(dict.fromkeys(known))

    def _subcommands(self) -> list[tuple[str, "Parser"]]:
        parts = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        return [item for part in parts for item in part.choices.items()]


def reason(error: BaseException) -> str:
    """An error as text: of an OSError its path and what the system says, without the number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror}"
    return str(error)


def exit_code(
    work: Callable[[], int], world: World = ALONE, *,
    refused: Errors = (ValueError, TypeError, OSError), failed: Errors = (KernelError,), interrupted: str = "interrupted",
) -> int:  # fmt: skip
    """Do the work of a command and return its exit code. An error that is named here is told in a line, `error: …`.

    Args:
        work: returns the code of a command that comes to its end.
        world: the processes that share the work; all end with the same code.
        refused: errors of an argument or a file, code 2.
        failed: errors of what was computed, code 1.
        interrupted: the line for Ctrl-C and its like, code 130.
    """
    try:
        with kernel_errors():
            return world.leave(work())
    except failed as error:
        return world.failed(error, f"error: {reason(error)}", 1)
    except refused as error:
        return world.failed(error, f"error: {reason(error)}", 2)
    except KeyboardInterrupt as error:
        return world.failed(error, interrupted, 130)


def check_writable(path: Path | None, endings: Sequence[str] = ()) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold. None: nothing is to be written.

    Raises:
        OSError: its folder is missing or not writable, it is a folder itself, or it has none of the `endings` (empty: any).
    """
    if path is None:
        return
    if endings and path.suffix not in endings:
        raise OSError(f"{path}: accepted are files that end in {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise OSError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise OSError(f"{path}: is a folder, not a file")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


class Output:
    """A standard stream that may break: a pipe that is closed, a terminal that hung up, a full disk. What it does not take is left
    out, so that a command that works for hours does not die of a line of its output; `failure` holds the first error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode

    def write(self, text: str) -> int:
        """As of a text stream."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """As of a text stream."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            if self.failure is None:
                action()
        except OSError as error:
            self.failure = error
            with contextlib.suppress(OSError, ValueError):  # what is buffered goes nowhere, instead of failing again at exit
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command as a process does, and exit with its code.

    SIGTERM and SIGHUP (unless it is ignored, as under nohup) interrupt it as Ctrl-C does, so that temporary files and child
    processes go; it then exits with 130. An error of the system that a command does not name itself is printed, with code 2. Of
    output that was lost a broken pipe is no fault: its reader has what it wanted.
    """
    sys.stdout, sys.stderr = out, err = Output(sys.stdout), Output(sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        signal.signal(HANGUP, signal.default_int_handler)
    code = exit_code(main, refused=(OSError,))
    out.flush()
    if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
        print(f"error: standard output: {out.failure.strerror}", file=sys.stderr)
        code = code or 2
    err.flush()
    raise SystemExit(code)


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
        if not field.metadata["flag"]:
            continue
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
            flags = filter(None, (flag(field.name), field.metadata["also"]))
            group.add_argument(*flags, default=argparse.SUPPRESS, metavar=_METAVARS[field.type], help=text)


def given_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields whose flags were given, with their values."""
    names = {field.name for field in dataclasses.fields(EnergyConfig)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def layered_config(
    preset: str | None, file: Path | None, fields: Mapping[str, Any], model: Callable[[str], Mapping[str, Any]] | None = None
) -> EnergyConfig:
    """The configuration from preset, file and flags, each overriding the one before.

    model: gives the fields of the model or run that `init_from` of file or flags names, which come before the file: all that there are,
        or beside a preset those of the model; then the values of the part that learns. None: there is no such model.

    Raises:
        ConfigError: a value or a key is not accepted, or the file does not parse.
        FileNotFoundError: there is no such file.
    """
    given = {**({} if file is None else read_fields(file)), **fields}
    values = EnergyConfig.preset(preset or "tiny").to_dict()
    named = given.get("init_from", NOTHING)
    if model is not None and isinstance(named, str) and named not in ("", NOTHING):
        of_model = model(named)
        values.update(of_model if preset is None else {name: of_model[name] for name in field_names(ModelConfig)})
        values.update(init_from=NOTHING, part="all", **PART_PRESETS.get(given.get("part", "all"), {}))
    # Checked only once all are merged, because a value of the file may be valid only together with a flag's.
    return EnergyConfig.from_dict({**values, **given}, source=str(file or "flags"))


_METAVARS: dict[Any, str] = {int: "INT", float: "NUMBER", str: "NAME"}
