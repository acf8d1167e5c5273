"""100,000 steps of a very small model: memory, open files and the time of a step stay flat.

A sample is taken after every 250 steps, each with a validation and a checkpoint; the slope over all of them comes with its standard
error. The time of a step is that of the processor, in the time that a fixed piece of work takes beside it (`pace`): other work on the
machine slows both. Every process that goes on with a soak has a level of its own; its first samples, in which caches fill, are left out. Before a
tenth of the steps are done the slope says too little for a verdict.

    python scripts/campaigns/soak.py --minutes 20 --state /dev/shm/soak
"""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from campaign import Campaign, pace
from jobs import after, flags

from energy_flow_mlx.files import resolve
from energy_flow_mlx.train import command as training
from energy_flow_mlx.train.step import TrainStep

BLOCK = 250  # steps
BLOCKS = 400
WARM = 3  # samples at the start of a process that are left out
MIB = 2**20


class Watched(NamedTuple):
    """What is watched: its unit, and how much of it all steps together may add."""

    unit: str
    most: float


WATCHED = {
    "memory": Watched("MiB", 16.0),
    "held by MLX": Watched("MiB", 1.0),
    "open files": Watched("", 0.5),
    "time of a step": Watched("%", 10.0),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; returns 0, or 1 if something grows."""
    campaign = Campaign("soak", BLOCKS, argv, __doc__)
    run, samples = campaign.folder / "run", campaign.folder / "samples.jsonl"
    saved = resolve(run, "trainer.json")
    campaign.done = json.loads(saved.read_text(encoding="utf-8"))["step"] // BLOCK if saved.is_file() else 0
    fields = flags(
        training_steps=BLOCK * BLOCKS, validation_interval=BLOCK, checkpoint_interval=BLOCK, log_interval=BLOCK // 5,
        learning_rate_schedule="constant",
    )  # fmt: skip
    trials = campaign.trials()
    if next(trials, None) is not None:
        sampler = _Sampler(samples)

        def settled(_: TrainStep, launched: object) -> None:
            if (launched.step + 1) % BLOCK == 0:
                sampler.take(launched.step + 1)
                if next(trials, None) is None and campaign.done < BLOCKS:
                    os.kill(os.getpid(), signal.SIGINT)  # the time is over: the run is saved, to be gone on with

        with after(TrainStep, "settle", settled):
            code = training.main((["--resume", str(run)] if saved.is_file() else ["--out", str(run), *fields]) + ["--quiet"])
        if code not in (0, 130):
            campaign.fault(f"the training ends with {code}")
    return _end(campaign, samples)


class _Sampler:
    """Writes samples; those of one process have its number."""

    def __init__(self, path: Path) -> None:
        self._path, self._process = path, time.time_ns()
        self._used = time.process_time()

    def take(self, step: int) -> None:
        """After a block of steps."""
        used = time.process_time()
        line = {
            "process": self._process,
            "step": step,
            "memory": _memory() / MIB,
            "held by MLX": (mx.get_active_memory() + mx.get_cache_memory()) / MIB,
            "open files": len(os.listdir("/dev/fd")),
            "time of a step": (used - self._used) / BLOCK / pace(),
        }
        self._used = time.process_time()  # without the sample
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _memory() -> int:
    """Bytes of this process in memory; where the system does not say, the most that it had."""
    pages = Path("/proc/self/statm")
    if pages.is_file():
        return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac


def _end(campaign: Campaign, path: Path) -> int:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    groups: dict[int, list[dict[str, float]]] = {}
    for line in lines:
        groups.setdefault(line["process"], []).append(line)
    warm = [group[WARM:] for group in groups.values() if len(group) > WARM]
    used = [line for group in warm for line in group]
    if len(used) < len(warm) + 8:
        return campaign.end(f"{BLOCK * campaign.done:,} steps, too few for a slope", _bound())
    told, held = [], True
    for name, watched in WATCHED.items():
        values = np.array([line[name] for line in used])
        if watched.unit == "%":
            values = 100 * values / values.mean()
        levels = np.repeat(np.eye(len(warm)), [len(group) for group in warm], axis=0)  # one a process
        slope, error = _slope(np.array([line["step"] for line in used]) / (BLOCK * BLOCKS), values, levels)
        told.append(f"{name} {slope:+.2f} ± {error:.2f} {watched.unit}".strip())
        held = held and slope - 3 * error <= watched.most
    extrapolated = "" if campaign.done >= BLOCKS else f", extrapolated from {BLOCK * campaign.done:,}"
    held = (held or campaign.done < BLOCKS // 10) and campaign.faults == 0
    return campaign.end(f"over {BLOCK * BLOCKS:,} steps{extrapolated}: {'; '.join(told)}", _bound(), held)


def _slope(steps: np.ndarray, values: np.ndarray, levels: np.ndarray) -> tuple[float, float]:
    """The slope of values [n] over steps [n] and its standard error, with a level of its own for each group of `levels` [n, groups]."""
    columns = np.column_stack([steps, levels])
    solution = np.linalg.lstsq(columns, values, rcond=None)[0]
    residual = values - columns @ solution
    variance = residual @ residual / max(len(values) - columns.shape[1], 1)
    return float(solution[0]), float(np.sqrt(variance * np.linalg.inv(columns.T @ columns)[0, 0]))


def _bound() -> str:
    most = ", ".join(f"{name} {watched.most:g} {watched.unit}".strip() for name, watched in WATCHED.items())
    return f"flat over {BLOCK * BLOCKS:,} steps: at most {most} (by three standard errors)"


if __name__ == "__main__":
    sys.exit(main())
