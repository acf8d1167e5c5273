"""How the commands of this package are called, for usages and hints that name one."""

MODULE = "python -m energy_flow_mlx"
_words = f"{MODULE}."  # before the name of a command


def called_as(program: str) -> None:
    """From now on commands are words of `program`: energy-flow, or MODULE."""
    global _words
    _words = f"{program} "


def call_of(name: str) -> str:
    """A command as this process's user types it: `python -m energy_flow_mlx.train`, or `energy-flow train`."""
    return _words + name


def does(documentation: str | None) -> str:
    """What the documentation of a command, "python -m …: what it does.", says after the call: the usage above it in the help has the call."""
    said = (documentation or "").partition(": ")[2]
    return said[:1].upper() + said[1:]
