"""python -m energy_flow_mlx.doctor: test every custom kernel on this machine, with a workaround for one that fails.

Each kernel is compiled, compared with MLX's built-in operations in forward and backward, and timed against them, with
the sizes of the presets. On a CPU only the built-in operations are run. Exit code 0: all passed, 1: a check failed,
2: invalid argument.
"""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..benchmark.processes import MeasurementFailed, run_mlx, workshop
from ..cli import Parser, check_writable, exit_code, run_command
from ..config import PRESETS
from ..nn.precision import DTYPES
from ..ops.failures import how_to_go_on
from ..ops.kernel import on_gpu
from ..program import call_of, does
from . import report
from .checks import NAMES, WHOLE, Finding, run_job

MODULE = "energy_flow_mlx.doctor.checks"
LIMIT = 120.0  # seconds per op, preset and dtype, after which a hanging kernel's process is killed
OPS = tuple(dict.fromkeys(name.split(",")[0] for name in NAMES))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a check failed), 2 (invalid argument), 130 (interrupted)."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _doctor(options), refused=(OSError,))


def _doctor(options: Namespace) -> int:
    check_writable(options.report, (".json",))  # a .txt is written beside it
    machine, findings = report.machine(), []
    print(report.heading(machine), flush=True)
    try:
        for finding in _examine(options.ops, options.preset, options.dtype):
            findings.append(finding)
            print(".", end="", file=sys.stderr, flush=True)
    finally:
        print(file=sys.stderr)
    print(report.table(findings), report.closing(findings), sep="\n\n")
    if options.report is not None:
        print(f"{options.report} and {report.write(options.report, machine, findings)} can be attached to an issue")
    return int(not all(finding.ok for finding in findings))


def _examine(ops: Sequence[str], presets: Sequence[str], dtypes: Sequence[str]) -> Iterator[Finding]:
    """Check the ops one by one. On a GPU each runs in a child process, so that a crash does not stop the others."""
    kernels = on_gpu()
    with workshop() as folder:
        for op in ops:
            names = [name for name in NAMES if name.split(",")[0] == op]
            job: dict[str, Any] = {"names": names, "presets": list(presets), "dtypes": list(dtypes), "kernels": kernels}
            if kernels:
                yield from _in_a_process(folder, op, job)
            else:
                yield from map(_finding, run_job(job)["findings"])


def _in_a_process(folder: Path, op: str, job: dict[str, Any]) -> Iterator[Finding]:
    try:
        result = run_mlx(folder, job, module=MODULE, cold=False, limit=LIMIT * len(job["presets"]) * len(job["dtypes"]))
    except MeasurementFailed as error:
        advice = "" if op == WHOLE else "\n" + how_to_go_on([(op, "")])
        message = f"its process failed: {error}{advice}"
        yield Finding(op, " ".join(job["presets"]), " ".join(job["dtypes"]), "", "", ok=False, message=message)
        return
    yield from map(_finding, result["findings"])


def _finding(values: dict[str, Any]) -> Finding:
    return Finding(**values)


def _parser() -> Parser:
    parser = Parser(prog=call_of("doctor"), description=does(__doc__), formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", nargs="+", choices=PRESETS, default=PRESETS, help="presets whose sizes are tested (default: all)"
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="dtypes of activations (default: float32)"
    )
    parser.add_argument(
        "--ops", nargs="+", choices=OPS, default=OPS, metavar="OP", help=f"ops to test (default: all): {', '.join(OPS)}"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.json", help="write the findings to FILE.json, and as text to FILE.txt"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
