"""python -m energy_flow_mlx.doctor: try every custom kernel on this machine, one by one, and say how to go on where one fails.

Each kernel is compiled, compared with MLX's own graph forward and backward, and timed beside it, with the sizes of the presets.
On a CPU MLX's own graph alone is run. Exit code 0: all passed, 1: something failed, 2: refused.
"""

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..benchmarks.processes import MeasurementFailed, run_mlx, workshop
from ..cli import Parser
from ..config import PRESETS
from ..nn.precision import DTYPES
from ..ops.failures import DOCTOR, how_to_go_on
from ..ops.kernel import on_gpu
from . import report
from .checks import NAMES, WHOLE, Finding, run_job

MODULE = "energy_flow_mlx.doctor.checks"
LIMIT = 120.0  # seconds for one op; a kernel that hangs ends here
OPS = tuple(dict.fromkeys(name.split(",")[0] for name in NAMES))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a check failed), 2 (refused), 130 (interrupted)."""
    options = _parser().parse_args(argv)
    if options.report is not None and not options.report.absolute().parent.is_dir():
        print(f"error: --report {options.report}: there is no folder {options.report.parent}", file=sys.stderr)
        return 2
    if options.report is not None and options.report.suffix != ".json":
        print(f"error: --report {options.report}: the file has to end in .json; a .txt is written beside it", file=sys.stderr)
        return 2
    here, findings = report.machine(), []
    print(report.heading(here), flush=True)
    try:
        for finding in _examine(options.ops, options.preset, options.dtype):
            findings.append(finding)
            print(".", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        print(file=sys.stderr)
    print(report.table(findings), report.closing(findings), sep="\n\n")
    if options.report is not None:
        print(f"{options.report} and {report.write(options.report, here, findings)} can be attached to an issue")
    return int(not all(finding.ok for finding in findings))


def _examine(ops: Sequence[str], presets: Sequence[str], dtypes: Sequence[str]) -> Iterator[Finding]:
    """The findings, op after op: on a GPU each op in a process of its own, so that none can stop the others."""
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
        way_on = "" if op == WHOLE else "\n" + how_to_go_on([(op, "")])
        message = f"the process that tried it ended: {error}{way_on}"
        yield Finding(op, " ".join(job["presets"]), " ".join(job["dtypes"]), "", "", ok=False, message=message)
        return
    yield from map(_finding, result["findings"])


def _finding(values: dict[str, Any]) -> Finding:
    return Finding(**values)


def _parser() -> Parser:
    parser = Parser(prog=DOCTOR, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=PRESETS, default=PRESETS, help="whose sizes (default: all)")
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=["float32"], help="of activations (default: float32)"
    )
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS, metavar="OP", help=f"of {', '.join(OPS)}")
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write what was found here, and as text beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
