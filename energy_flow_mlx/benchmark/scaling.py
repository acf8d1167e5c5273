"""`--scaling`: a step by several processes, each with a batch of its own, beside the same step by one."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

from ..config import EnergyConfig
from ..data.source import PairBatch
from ..distributed import ALONE, World, joined
from ..train import memory
from ..train.loss import number
from ..train.optimiser import named_arrays
from .measure import LEAST_REPEATS, clear_memory, device_name, pipelined, timed
from .output import milliseconds, percent, table
from .work import make_batches, make_model, make_step

COUNTS = "1,2,4"
MOST = 256  # processes on one machine


def measure_scaling(job: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the processes that share this job; `row` in the first of them."""
    with joined() as world:
        row = scaling_row(job, world)
        world.leave(0)
    return row


def scaling_rows(job: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of one process and of all that a launcher started; None in all but the first."""
    with joined() as world:
        alone = [scaling_row(job, ALONE)] if world.first else []
        rows = [*alone, scaling_row(job, world)]
        world.leave(0)
    return rows if world.first else None


def scaling_row(job: Mapping[str, Any], world: World) -> dict[str, Any]:
    """Time training steps whose batch is `world.size` times that of the configuration.

    Returns:
        seconds: mean of a step while the next one is launched. collective_s: median of averaging its gradients, alone. sent: bytes that
        a process sends for them over a ring. first_loss: of the configuration's own batch, divided among the processes; None if it
        cannot be.
    """
    config = EnergyConfig.from_dict(job["config"])
    memory.limit(config)
    first = None
    if config.batch_size % world.size == 0:
        model = make_model(config, training=True, dropout=job["dropout"])
        shares = [_own(batch, world) for batch in make_batches(config)]
        first = number(make_step(config, model, world)(0, shares, config.learning_rate).loss)
    batches = make_batches(config, seed=world.rank)
    model = make_model(config, training=True, dropout=job["dropout"])
    step = make_step(config, model, world)
    for warm in range(1 + job["warmup"]):
        began = time.perf_counter()
        step(warm, batches, config.learning_rate)
    # All processes make as many calls: the first one says how many fit into the time.
    fit = world.exchange(job["limit_s"] / (time.perf_counter() - began))[0]
    calls = max(LEAST_REPEATS, min(job["repeats"], int(fit)))
    clear_memory()
    seconds = pipelined(lambda: step.launch(0, batches, config.learning_rate), step.settle, calls)
    peak = mx.get_peak_memory()
    gradients = step.gradients(0, batches)[1]
    held = 4 * sum(array.size for array in named_arrays(gradients).values())
    mx.eval(gradients)
    averaging = timed(lambda: mx.eval(world.mean(gradients)), warmup=2, repeats=calls, limit=float("inf"))
    return {
        "processes": world.size,
        "seconds": seconds,
        "collective_s": statistics.median(averaging) if world.size > 1 else 0.0,
        "gradient_bytes": held,
        "sent": 2 * (world.size - 1) * held // world.size,
        "first_loss": first,
        "peak_bytes": peak,
        "device": device_name(),
    }


def text(rows: Sequence[Mapping[str, Any]], batch: int) -> str:
    """The rows as a table; efficiency is against the first row's time for as many pairs a process."""
    header = ("processes", "ms a step", "efficiency", "pairs/s", "MB sent a step", "ms in collectives alone", "share", "first loss", "GiB")
    lines = []
    for row in rows:
        loss = row["first_loss"]
        lines.append((
            str(row["processes"]),
            milliseconds(row["seconds"]),
            percent(rows[0]["seconds"] / row["seconds"]),
            f"{row['processes'] * batch / row['seconds']:,.0f}",
            f"{row['sent'] / 1e6:,.1f}",
            milliseconds(row["collective_s"]),
            percent(row["collective_s"] / row["seconds"]),
            "" if loss is None else f"{loss:.6f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
        ))  # fmt: skip
    return f"scaling, {batch} pairs in each process, {rows[0]['device']}\n{table(header, lines)}"


def _own(batch: PairBatch, world: World) -> PairBatch:
    return batch._replace(**{name: world.own(rows) for name, rows in batch._asdict().items() if rows is not None})
