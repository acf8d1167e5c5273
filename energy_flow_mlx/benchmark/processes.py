"""Running measurements in child processes, one at a time, so that they share no memory, caches or compiled kernels."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..data.source import PairBatch
from ..strict_json import read_json, to_json, with_numbers, write_json

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


def run_together(folder: Path, job: Mapping[str, Any], count: int) -> dict[str, Any]:
    """`run_mlx` in `count` processes that know each other, on CUDA each on a GPU of its own; returns the result of the first.

    Raises:
        MeasurementFailed: one of them failed.
    """
    members = _members(folder, count) if count > 1 else [{}]
    return _run(folder, [sys.executable, "-m", "energy_flow_mlx.benchmark.job"], job, True, None, members)


def _members(folder: Path, count: int) -> list[dict[str, str]]:
    """The environments of `count` processes on this machine, as mlx.launch sets them."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        ports = [str(each.getsockname()[1]) for each in sockets]
    if mx.cuda.is_available():
        shared = {"MLX_WORLD_SIZE": str(count), "NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": ports[0]}
        return [{**shared, "MLX_RANK": str(rank), "CUDA_VISIBLE_DEVICES": str(rank)} for rank in range(count)]
    hosts = folder / f"hosts{count}.json"
    hosts.write_text(to_json([[f"127.0.0.1:{port}"] for port in ports]), encoding="utf-8")
    return [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(count)]


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
    arrays = {f"{name}.{k}": value for k, batch in enumerate(batches) for name, value in batch._asdict().items() if value is not None}
    np.savez(path, count=np.array(len(batches)), **arrays)


def _run(
    folder: Path,
    command: list[str],
    job: Mapping[str, Any],
    cold: bool,
    limit: float | None,
    members: Sequence[Mapping[str, str]] = ({},),
) -> dict[str, Any]:
    """Run a process for each of `members`, what its environment has besides; the result is that of the first."""
    number = len(list(folder.glob("*.job.json")))
    job_file, result_files = folder / f"{number}.job.json", [folder / f"{number}.result{rank}.json" for rank in range(len(members))]
    write_json(job_file, dict(job))
    environment = dict(os.environ)
    if cold:
        for name in CACHES:
            (folder / f"{number}.cache").mkdir(exist_ok=True)
            environment[name] = str(folder / f"{number}.cache" / name.lower())
            Path(environment[name]).mkdir()
    log = folder / f"{number}.log"
    children: list[subprocess.Popen[bytes]] = []
    with log.open("ab") as output:
        try:
            for member, result_file in zip(members, result_files, strict=True):
                # A new session, so that the processes that torch's compiler starts can be killed together with the child.
                children.append(
                    subprocess.Popen(
                        [*command, str(job_file), str(result_file)],
                        env={**environment, **member},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            code = next(filter(None, [child.wait(timeout=limit) for child in children]), 0)
        except subprocess.TimeoutExpired:
            raise MeasurementFailed(f"timed out after {limit:.0f} s") from None
        finally:
            for child in children:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if code or not result_files[0].is_file():
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        first = next((index for index, line in enumerate(lines) if line.startswith("error: ")), -1)
        raise MeasurementFailed(f"exit code {code}: " + ("\n".join(lines[first:]) or "no message"))
    result: dict[str, Any] = with_numbers(read_json(result_files[0]))
    return result
