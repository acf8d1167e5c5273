"""Measuring the MLX model and the variants of the torch baseline, as rows of one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from ..config import EnergyConfig
from .output import milliseconds
from .processes import MeasurementFailed, run_mlx, run_torch, save_batches
from .work import compute_dtype, flow_steps, make_batches, total_flops

WHATS = ("training", "forward")
# Those that compile fast come first, because the time limit may leave out the last ones.
TORCH_CUDA = (
    "bf16/cell/captured", "fp32/cell/captured", "bf16/cell/step", "fp32/cell/step", "fp32/cudnn/captured",
    "bf16/cell/whole", "fp32/cell/whole", "bf16/cell/captured-whole", "fp32/cell/captured-whole",
)  # fmt: skip
TORCH_CPU = ("fp32/cell/eager", "fp32/cudnn/eager", "fp32/cell/whole")
TORCH_EAGER = ("fp32/cell/eager", "fp32/cudnn/eager", "bf16/cell/eager")
_WEIGHTS_LIMIT = 2**29  # bytes; smaller models start from the same weights in both frameworks


@dataclass(frozen=True)
class Plan:
    """How to measure.

    warmup, repeats: untimed and timed calls of a row.
    limit_s: seconds after which a row's timed calls stop.
    dropout: keep dropout on.
    cold: give each process empty caches of compiled kernels.
    torch_limit_s: total seconds for all torch processes.
    """

    warmup: int
    repeats: int
    limit_s: float
    dropout: bool
    cold: bool
    torch_limit_s: float


def measure_mlx(
    config: EnergyConfig,
    plan: Plan,
    folder: Path,
    ceilings: Mapping[str, Any],
    weights: Path | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure the MLX model: one row for the training step and one for the forward pass.

    The training process writes its initial weights to `weights`, for the torch baseline.
    """
    rows = []
    for what in WHATS:
        save = str(weights) if weights is not None and what == WHATS[0] else None
        job = {**_job(config, plan, what), "save_weights": save}
        measured = partial(run_mlx, folder, job, cold=plan.cold)
        rows.append(_row("mlx", compute_dtype(config), config, what, ceilings, measured))
        say(_brief(rows[-1]))
    return rows


def measure_torch(
    config: EnergyConfig,
    plan: Plan,
    folder: Path,
    ceilings: Mapping[str, Any],
    weights: Path | None,
    variants: Sequence[str],
    device: str,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure the torch baseline: rows for training and forward of each variant.

    A row that failed or was left out because of the time limit has an `error`.
    """
    data = folder / "batches.npz"
    save_batches(data, make_batches(config))
    end = perf_counter() + plan.torch_limit_s
    rows = []
    for variant in variants:
        for what in WHATS:
            job = {
                **_job(config, plan, what),
                "variant": variant.split("/"),
                "device": device,
                "data": str(data),
                "weights": str(weights) if weights is not None and weights.is_file() else None,
            }

            def measured(job: Mapping[str, Any] = job) -> dict[str, Any]:
                remaining = end - perf_counter()
                if remaining <= 0:
                    raise MeasurementFailed(f"left out: --torch-limit {plan.torch_limit_s:g} s is used up")
                # Half of the remaining time, so that one variant with an endless compilation cannot use all of it.
                return run_torch(folder, job, cold=plan.cold, limit=max(remaining / 2, min(remaining, 60.0)))

            rows.append(_row("torch", variant, config, what, ceilings, measured))
            say(_brief(rows[-1]))
    return rows


def _brief(row: Mapping[str, Any]) -> str:
    """A row as one line, printed as soon as it is measured."""
    found = row["error"] if "error" in row else f"{milliseconds(row['seconds'])} ms, {milliseconds(row['pipelined_s'])} pipelined"
    return f"{row['framework']} {row['variant']}, {row['what']}: {found}"


def weights_file(config: EnergyConfig, folder: Path) -> Path | None:
    """The file in which the MLX process saves its initial weights for torch; None if they are too large to share."""
    middle = max(config.embedding_dim // 2, 2 * config.surface_dim)
    surface = config.surface_dim
    many = 2 * (config.embedding_dim * middle + 2 * middle * surface + 2 * surface * surface)
    return folder / "weights.npz" if 4 * many <= _WEIGHTS_LIMIT else None


def best_of(rows: Sequence[Mapping[str, Any]], what: str, key: str) -> Mapping[str, Any] | None:
    """The torch row of `what` with the smallest `key`; None if there is none."""
    found = [row for row in rows if row["framework"] == "torch" and row["what"] == what and row.get(key) is not None]
    return min(found, key=lambda row: float(row[key]), default=None)


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """MLX relative to torch, for training and forward: its time / the fastest torch variant's, its memory / the same
    variant's, and its memory / the smallest of all variants."""
    found = []
    for row in rows:
        fastest = best_of(rows, row["what"], "seconds")
        if row["framework"] != "mlx" or "seconds" not in row or fastest is None:
            continue
        key = "peak_bytes" if fastest.get("peak_bytes") else "process_peak_bytes"
        leanest = best_of(rows, row["what"], key)
        assert leanest is not None
        found.append(
            {
                "what": row["what"],
                "mlx": row["variant"],
                "fastest_torch": fastest["variant"],
                "time": row["seconds"] / fastest["seconds"],
                "memory": row[key] / fastest[key],
                "memory_kind": key,
                "leanest_torch": leanest["variant"],
                "memory_to_leanest": row[key] / leanest[key],
                # The loss of the first step, or the sum of the embeddings: equal if both used the same weights.
                "first_value": row["first_value"],
                "first_value_torch": fastest["first_value"],
            }
        )
    return found


def _job(config: EnergyConfig, plan: Plan, what: str) -> dict[str, Any]:
    return {
        "what": what,
        "config": config.to_dict(),
        "dropout": plan.dropout,
        "warmup": plan.warmup,
        "repeats": plan.repeats,
        "limit_s": plan.limit_s,
    }


def _row(
    framework: str,
    variant: str,
    config: EnergyConfig,
    what: str,
    ceilings: Mapping[str, Any],
    measured: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    row: dict[str, Any] = {"framework": framework, "variant": variant, "what": what}
    try:
        row.update(measured())
    except MeasurementFailed as error:
        return {**row, "error": str(error)}
    micro_batches = config.gradient_accumulation_steps if what == "training" else 1
    flops = total_flops(config, what)
    row["samples_per_s"] = micro_batches * config.batch_size / row["seconds"]
    row["flow_steps_per_s"] = flow_steps(config, what) / row["seconds"]
    row["flops"] = flops
    row["tflops"] = flops / row["seconds"] / 1e12
    dtype = variant if framework == "mlx" else {"fp32": "float32", "bf16": "bfloat16"}[variant.split("/")[0]]
    peak = ceilings.get("flops", {}).get(dtype)
    row["share_of_peak"] = None if peak is None else flops / row["seconds"] / peak
    return row
