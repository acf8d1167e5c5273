"""Running measurements in child processes, one at a time, so that they share no memory, caches or compiled kernels."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..data.source import PairBatch
from ..strict_json import read_json, with_numbers, write_json

BASELINE = Path(__file__).resolve().parents[2] / "scripts" / "torch_baseline.py"
# Cache folders of compiled kernels: MLX's and the driver's on CUDA, and torch's. Metal's cache is managed by macOS.
CACHES = ("MLX_PTX_CACHE_DIR", "CUDA_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


class MeasurementFailed(RuntimeError):
    """A child process failed or timed out. The message is its output from `error: …` on, or else its last line."""


@contextmanager
def workshop() -> Iterator[Path]:
    """A temporary folder for the jobs of one benchmark."""
    with tempfile.TemporaryDirectory(prefix="energy-flow-benchmark-") as folder:
        yield Path(folder)


def run_mlx(
    folder: Path,
    job: Mapping[str, Any],
    *,
    module: str = "energy_flow_mlx.benchmark.job",
    cold: bool = True,
    limit: float | None = None,
) -> dict[str, Any]:
    """Run a job with `python -m MODULE JOB RESULT`, killed after `limit` seconds; returns its result.

    Args:
        folder: for the job's files.
        job: the job, which must be serialisable as JSON.
        module: the module to run.
        cold: give the process empty caches of compiled kernels.
        limit: seconds; None: no limit.

    Raises:
        MeasurementFailed: the process failed or was killed.
    """
    return _run(folder, [sys.executable, "-m", module], job, cold, limit)


def run_torch(folder: Path, job: Mapping[str, Any], *, cold: bool = True, limit: float | None = None) -> dict[str, Any]:
    """Run a job with scripts/torch_baseline.py; arguments as in `run_mlx`.

    Raises:
        MeasurementFailed: the process failed or was killed, or the script does not exist.
    """
    if not BASELINE.is_file():
        raise MeasurementFailed(f"{BASELINE} is missing: --compare torch runs in a clone of the repository")
    return _run(folder, [sys.executable, str(BASELINE)], job, cold, limit)


def save_batches(path: Path, batches: Sequence[PairBatch]) -> None:
    """Write batches (arrays as in `PairBatch`) to an .npz file for the torch process."""
    arrays = {f"{name}.{k}": value for k, batch in enumerate(batches) for name, value in batch._asdict().items()}
    np.savez(path, count=np.array(len(batches)), **arrays)


def _run(folder: Path, command: list[str], job: Mapping[str, Any], cold: bool, limit: float | None) -> dict[str, Any]:
    number = len(list(folder.glob("*.job.json")))
    job_file, result_file = folder / f"{number}.job.json", folder / f"{number}.result.json"
    write_json(job_file, dict(job))
    environment = dict(os.environ)
    if cold:
        for name in CACHES:
            (folder / f"{number}.cache").mkdir(exist_ok=True)
            environment[name] = str(folder / f"{number}.cache" / name.lower())
            Path(environment[name]).mkdir()
    log = folder / f"{number}.log"
    with log.open("wb") as output:
        # A new session, so that the processes that torch's compiler starts can be killed together with the child.
        child = subprocess.Popen(
            [*command, str(job_file), str(result_file)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            raise MeasurementFailed(f"timed out after {limit:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if code or not result_file.is_file():
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        first = next((index for index, line in enumerate(lines) if line.startswith("error: ")), -1)
        raise MeasurementFailed(f"exit code {code}: " + ("\n".join(lines[first:]) or "no message"))
    result: dict[str, Any] = with_numbers(read_json(result_file))
    return result
