"""python -m energy_flow_mlx, or energy-flow: list the commands, or run one."""

import argparse
import ast
import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from .cli import run_command
from .program import MODULE, called_as

PACKAGE = "energy_flow_mlx"
_PROGRAM = "energy-flow"


def main() -> int:
    """Run the command that the first argument names, as `python -m energy_flow_mlx.COMMAND` does; without one, list all.

    Returns:
        The exit code: 0, or 2 for an unknown command. A command that runs exits with its own.
    """
    commands = verbs(Path(__file__).parent)
    words = sys.argv[1:]
    if "_ARGCOMPLETE" in os.environ:
        words = _completed(list(commands))
    if not words or words[0] in ("-h", "--help"):
        print(_listing(commands))
        return 0
    name = words[0]
    if name not in commands:
        print(f"error: {name} is no command; accepted are {', '.join(commands)}", file=sys.stderr)
        return 2
    called_as(MODULE if Path(sys.argv[0]).name == "__main__.py" else _PROGRAM)
    sys.argv = [f"{PACKAGE}.{name}", *words[1:]]
    runpy.run_module(f"{PACKAGE}.{name}", run_name="__main__", alter_sys=True)
    return 0


def verbs(package: Path) -> dict[str, str]:
    """The commands of the package and what they do: its modules whose documentation starts with `python -m`.

    Nothing is imported.
    """
    found = {}
    for path in sorted([*package.glob("*.py"), *package.glob("*/__main__.py")]):
        name = path.parent.name if path.name == "__main__.py" else path.stem
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        call, colon, does = text.split("\n")[0].partition(": ")
        if colon and call.split()[:3] == ["python", "-m", f"{PACKAGE}.{name}"]:
            found[name] = does.rstrip(".")
    return found


def _listing(commands: dict[str, str]) -> str:
    width = max(map(len, commands))
    lines = [f"{_PROGRAM} COMMAND ..., or {MODULE}.COMMAND ...", ""]
    lines += [f"  {name:{width}}  {does}" for name, does in commands.items()]
    return "\n".join([*lines, "", f"{_PROGRAM} COMMAND --help shows the arguments of one."])


def _completed(commands: list[str]) -> list[str]:
    """While a shell completes a line: its words, where a command among them is to complete the next one; else the names of the
    commands go to the shell, and the process ends."""
    import argcomplete

    words = argcomplete.split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    if words[1:2] and words[1] in commands:
        os.environ["_ARGCOMPLETE"] = "2"  # of the words the first two are the program
        return words[1:]
    parser = argparse.ArgumentParser(prog=_PROGRAM)
    parser.add_argument("command", choices=commands)
    argcomplete.autocomplete(parser)  # ends the process
    return []


def run() -> NoReturn:
    """`main` as a process."""
    run_command(main)


if __name__ == "__main__":
    run()
