"""What a run says while it trains: the progress bar, and the lines of metrics.jsonl."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ..config import EnergyConfig
from .checkpoint import append_metrics
from .evaluation import Evaluation
from .loss import number
from .step import Launched, StepMetrics


class Progress:
    """The bar and metrics.jsonl of one run; use it in a `with` statement.

    Args:
        folder: of the run.
        start: steps already done.
        quiet: no bar; metrics.jsonl is written all the same.
    """

    def __init__(self, folder: Path, config: EnergyConfig, start: int, quiet: bool) -> None:
        self._folder, self._config = folder, config
        self._bar = tqdm(
            total=config.training_steps, initial=start, disable=quiet, unit="step", dynamic_ncols=True, smoothing=0.1
        )
        self._pairs_a_step = config.batch_size * config.gradient_accumulation_steps
        self._shown: dict[str, str] = {}
        self._steps, self._seconds, self._began = 0, 0.0, time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def trained(self, launched: Launched, metrics: StepMetrics) -> None:
        """Count a finished step. Its seconds are those since the last step or validation ended."""
        now = time.perf_counter()
        self._steps, self._seconds, self._began = self._steps + 1, self._seconds + now - self._began, now
        parts = metrics.parts
        self._shown["loss"] = f"{number(metrics.loss):.4f}"
        self._shown["arrived"] = f"{number(parts.arrived) / max(number(parts.ended), 1):.0%}"
        self._shown["samples/s"] = f"{self._samples_per_second():.0f}"
        self._shown["peak"] = f"{mx.get_peak_memory() / 2**30:.2f} GiB"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()
        done = launched.step + 1
        if done % self._config.log_interval == 0 or done == self._config.training_steps:
            append_metrics(self._folder, self._line(done, metrics, launched.learning_rate))

    def validated(self, step: int, result: Evaluation) -> None:
        """Note a validation after `step` steps; its time does not count towards the samples per second."""
        self._shown = {"loss": self._shown["loss"], "val cosine": f"{result.cosine:.4f}", **self._shown}
        self._shown["val cosine"] = f"{result.cosine:.4f}"
        self._bar.set_postfix(self._shown, refresh=False)
        self._began = time.perf_counter()
        values = dataclasses.asdict(result)
        append_metrics(self._folder, {"step": step, **{f"validation_{name}": value for name, value in values.items()}})

    def _line(self, step: int, metrics: StepMetrics, rate: float) -> dict[str, Any]:
        parts = {name: number(value) for name, value in metrics.parts._asdict().items()}
        return {
            "step": step,
            "loss": number(metrics.loss),
            **parts,
            "gradient_norm": number(metrics.gradient_norm),
            "loss_scale": number(metrics.loss_scale),
            "skipped": number(metrics.skipped),
            "learning_rate": rate,
            "samples_per_second": self._samples_per_second(),
            "peak_memory_bytes": mx.get_peak_memory(),
        }

    def _samples_per_second(self) -> float:
        return self._steps * self._pairs_a_step / self._seconds
