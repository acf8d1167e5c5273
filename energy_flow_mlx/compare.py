"""python -m energy_flow_mlx.compare RUN RUN ...: what runs differ in and what they reached, over seeds as mean and spread."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from .cli import Parser, check_writable, exit_code, run_command
from .comparison import compare
from .figures import ENDINGS
from .files import write_aside
from .program import call_of, does
from .strict_json import to_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 (a folder without results, or a file that cannot be written), 130 (interrupted)."""
    parser = Parser(prog=call_of("compare"), description=does(__doc__))
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs on the same data")
    parser.add_argument("--json", action="store_true", help="print all values as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"write a picture too: {', '.join(ENDINGS)}")
    options = parser.parse_args(argv)
    return exit_code(lambda: _compare(options))


def _compare(options: Namespace) -> int:
    check_writable(options.out, ENDINGS)
    found = compare(*options.runs)
    if options.out is not None:
        figure = found.plot().figure
        write_aside(options.out, lambda aside: figure.savefig(aside, dpi=150, format=options.out.suffix[1:]))
    print(to_json(found.to_dict()) if options.json else found)
    return 0


if __name__ == "__main__":
    run_command(main)
