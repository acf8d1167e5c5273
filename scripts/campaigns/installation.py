"""The package installed from a wheel under every Python that is there, with each extra, with the newest and the oldest MLX.

What is small is installed and trains two steps. Extras of several gigabytes (torch, CUDA) are resolved alone: that there are packages
for this Python and machine. Needs the package index. Where that does not answer, pip asks again, and the installation is tried three times; then
it counts as not reached, which is no fault of the package: a package that the index does not have is one.

    python scripts/campaigns/installation.py --minutes 20
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from campaign import Campaign

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TINY = "--preset tiny --training-steps 2 --train-pairs 64 --validation-pairs 8 --test-pairs 8 --quiet"
PARQUET = """
import pyarrow, pyarrow.parquet
pyarrow.parquet.write_table(pyarrow.table({"input": ["a dog runs"] * 9, "target": ["an animal moves"] * 9}), "pairs.parquet")
from energy_flow_mlx.dataset.__main__ import main
raise SystemExit(main(["inspect", "pairs.parquet"]))
"""


UNREACHED = re.compile(
    r"Connection(Error| reset| aborted| refused| broken)|NewConnectionError|NameResolutionError|(Read|Connect)Timeout|ProtocolError|IncompleteRead"
    r"|Remote end closed|ProxyError|SSLError|HTTP error (429|5\d\d)|(429|5\d\d) (Server|Client) Error"
)
ATTEMPTS = 3
PATIENT = {"PIP_RETRIES": "10", "PIP_TIMEOUT": "60"}


class Unreached(Exception):
    """The index did not answer."""


class Case(NamedTuple):
    """`extras` with the `newest` or the oldest MLX; `check` says what is wrong in a virtual environment, None: resolve alone."""

    name: str
    extras: str
    newest: bool
    check: Callable[[Path], str] | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, or 1 if an installation does not do what it should."""
    cases = (
        Case("no extra", "", True, _asks_for_a_backend),
        Case("cpu", "[cpu]", True, _trains),
        Case("cpu, oldest mlx", "[cpu]", False, _trains),
        Case("cpu, parquet", "[cpu,parquet]", True, _reads_parquet),
        Case("cuda12", "[cuda12]", True, None),
        Case("cuda13", "[cuda13]", True, None),
        Case("cpu, convert", "[cpu,convert]", True, None),
        Case("cpu, test", "[cpu,test]", True, None),
    )
    pythons = {version: python for version in PYTHONS if (python := _python(version))}
    trials = [(version, case) for case in cases for version in pythons]
    campaign = Campaign("installation", len(trials), argv, __doc__)
    kept = campaign.folder / "results.json"
    results: dict[str, str] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    wheel = _wheel(campaign.folder.resolve()) if campaign.done < len(trials) else Path()
    for trial in campaign.trials():
        version, case = trials[trial]
        try:
            fault = _tried(case, pythons[version], wheel, campaign.folder.resolve() / "venv")
            results[f"{version} {case.name}"] = "faulty" if fault else "works" if case.check else "resolves"
        except Unreached as error:
            fault, results[f"{version} {case.name}"] = "", "not reached"
            campaign.count("not reached")
            print(f"Python {version}, {case.name}: not reached: {error}", file=sys.stderr, flush=True)
        kept.write_text(json.dumps(results, indent=1), encoding="utf-8")
        if fault:
            campaign.fault(f"Python {version}, {case.name}: {fault}")
    print(f"| Python | {' | '.join(case.name for case in cases)} |\n|{'---|' * (len(cases) + 1)}")
    for version in PYTHONS:
        cells = [results.get(f"{version} {case.name}", "not tried" if version in pythons else "no interpreter") for case in cases]
        print(f"| {version} | {' | '.join(cells)} |")
    reached = len(results) - campaign.counts["not reached"]
    figure = f"{reached} of {len(PYTHONS) * len(cases)} installations, {campaign.counts['not reached']} not reached, {campaign.faults} faults"
    absent = [version for version in PYTHONS if version not in pythons]
    figure += f" (no interpreter: {', '.join(absent)})" if absent else ""
    return campaign.end(figure, "Python 3.10 to 3.14, each extra, mlx newest and oldest")


def _python(version: str) -> str | None:
    """An interpreter of this version that runs: on the path, or one of pyenv's."""
    beside = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
    for candidate in (shutil.which(f"python{version}"), *map(str, beside)):
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def _wheel(folder: Path) -> Path:
    for old in folder.glob("*.whl"):
        old.unlink()
    _call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


def _tried(case: Case, python: str, wheel: Path, folder: Path) -> str:
    """What is wrong with one installation; empty if nothing is.

    Raises:
        Unreached: the index did not answer in any of the attempts.
    """
    for _ in range(ATTEMPTS):
        if not UNREACHED.search(fault := _attempt(case, python, wheel, folder)):
            return fault
    raise Unreached(fault)


def _attempt(case: Case, python: str, wheel: Path, folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _call(python, "-m", "venv", folder)
        new = folder / "bin" / "python"
        _call(new, "-m", "pip", "install", "--quiet", "--upgrade", "pip")  # an old one downloads whole packages to resolve
        wanted = [f"{wheel}{case.extras}", *([] if case.newest else [f"mlx{case.extras}=={_oldest()}"])]
        resolve = [] if case.check else ["--dry-run", "--ignore-installed"]
        _call(new, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *resolve, *wanted)
        return case.check(new) if case.check else ""
    except subprocess.CalledProcessError as error:
        return f"{' '.join(map(str, error.cmd[1:5]))} …: {(error.stderr or error.stdout)[-2000:]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _oldest() -> str:
    """The oldest MLX that pyproject.toml accepts."""
    found = re.search(r'"mlx\[cpu\]>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found, "pyproject.toml: no mlx[cpu]>="
    return found[1]


def _asks_for_a_backend(python: Path) -> str:
    if sys.platform == "darwin":
        return _trains(python)
    result = _run(python, "-c", "import energy_flow_mlx")
    last = (result.stderr.splitlines() or [""])[-1]
    return "" if result.returncode and "energy-flow-mlx[cpu]" in last else f"the import does not name an extra: {last}"


def _trains(python: Path) -> str:
    run = python.parents[1] / "run"
    for command in (f"-m energy_flow_mlx.train --out {run} {TINY}", f"-m energy_flow_mlx.evaluate {run}"):
        result = _run(python, *command.split())
        if result.returncode:
            return f"{command.split()[1]} ends with {result.returncode}: {result.stderr[-300:]}"
    return ""


def _reads_parquet(python: Path) -> str:
    result = _run(python, "-c", PARQUET)
    return "" if result.returncode == 0 else f"Parquet: {result.stderr[-300:]}"


def _run(*command: object) -> subprocess.CompletedProcess[str]:
    """A command in its own environment, outside the repository."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")} | PATIENT
    folder = Path(str(command[0])).parents[1]
    return subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True, env=clean, cwd=folder)


def _call(*command: object) -> None:
    _run(*command).check_returncode()


if __name__ == "__main__":
    sys.exit(main())
