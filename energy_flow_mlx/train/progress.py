"""What a run says while it trains: a bar in a terminal, lines elsewhere, and the lines of metrics.jsonl."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm.auto import tqdm

from ..bar import Bar, in_notebook, in_terminal
from ..config import EnergyConfig
from ..scores import Evaluation
from .callbacks import Callbacks
from .checkpoint import append_metrics
from .correction import Corrected
from .loss import number
from .step import Launched, StepMetrics

_FORMAT = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}] {bar}"  # a narrow terminal cuts the end off: the loss stays


class Progress:
    """The bar, metrics.jsonl and callbacks of one run; use it in a `with` statement. In a notebook the bar is its own; where there
    is neither notebook nor terminal, a line each `log_interval` stands for it.

    Args:
        folder: of the run.
        start: steps already done.
        quiet: no bar and no lines; metrics.jsonl is written and the callbacks are called all the same.
    """

    def __init__(self, folder: Path, config: EnergyConfig, start: int, quiet: bool, callbacks: Callbacks) -> None:
        self._folder, self._config, self._callbacks = folder, config, callbacks
        self._lines = not quiet and not in_terminal() and not in_notebook()
        nothing = quiet or self._lines
        steps: dict[str, Any] = {"total": config.training_steps, "initial": start}
        self._bar = tqdm(**steps, disable=nothing) if in_notebook() else Bar(**steps, quiet=nothing, bar_format=_FORMAT)
        self._pairs_a_step = config.batch_size * config.gradient_accumulation_steps
        self._shown: dict[str, str] = {}
        self._steps, self._seconds, self._began = 0, 0.0, time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def trained(self, launched: Launched, metrics: StepMetrics) -> None:
        """Count a finished step. Its seconds are those since the last step, validation or checkpoint ended."""
        now = time.perf_counter()
        self._steps, self._seconds, self._began = self._steps + 1, self._seconds + now - self._began, now
        parts = metrics.parts
        self._shown["loss"] = f"{number(metrics.loss):.4f}"
        if number(parts.ended):  # else the text decoder learns alone, from no flow
            self._shown["arrived"] = f"{number(parts.arrived) / number(parts.ended):.0%}"
        self._shown["samples/s"] = f"{self._samples_per_second():.0f}"
        self._shown["peak"] = f"{mx.get_peak_memory() / 2**30:.2f} GiB"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()
        done = launched.step + 1
        if done % self._config.log_interval == 0 or done == self._config.training_steps:
            self._say(done, self._shown)
            line = self._line(done, metrics, launched.learning_rate)
            append_metrics(self._folder, line)
            self._callbacks.on_step(done, line)

    def validated(self, step: int, result: Evaluation | Corrected) -> None:
        """Note a validation after `step` steps; its time does not count towards the samples per second."""
        shown = {"val cosine": f"{result.cosine:.4f}"}
        if self._config.text_decoder_loss_weight or self._config.part == "corrector":
            shown["val exact"] = f"{result.exact:.1%}"
        self._shown = {"loss": self._shown["loss"], **shown, **self._shown, **shown}
        self._bar.set_postfix(self._shown, refresh=False)
        self._say(step, shown)
        values = dataclasses.asdict(result)
        append_metrics(self._folder, {"step": step, **{f"validation_{name}": value for name, value in values.items()}})
        self._callbacks.on_validation(step, result)
        self._began = time.perf_counter()

    def saved(self, step: int) -> None:
        """Note a checkpoint: its time does not count towards the samples per second either, however slow the disk is."""
        self._callbacks.on_checkpoint(step, self._folder)
        self._began = time.perf_counter()

    def _say(self, step: int, shown: dict[str, str]) -> None:
        if self._lines:
            values = "".join(f"  {name} {value}" for name, value in shown.items())
            print(f"step {step}/{self._config.training_steps}{values}", file=sys.stderr, flush=True)

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
