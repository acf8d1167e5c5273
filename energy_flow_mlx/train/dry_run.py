"""`train --dry-run`: what a run would be, take and write, from its first steps in memory."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..config import ConfigError, EnergyConfig
from ..metrics import FILE as METRICS
from ..results import FILE as RESULTS
from . import memory
from .checkpoint import FILES, JUDGED_BY
from .keeping import BEST, STEPS
from .optimiser import learning_rate, named_arrays
from .prepare import Prepared, header, ready
from .report import CURVES
from .step import TrainStep, micro_batches

MOST_STEPS, MOST_SECONDS = 10, 3.0  # of the trial, after its first step


def dry_run(config: EnergyConfig, folder: Path, *, resume: bool) -> str:
    """What `train` would do, with the time of a few steps that are tried. Nothing is written.

    Raises:
        ConfigError: the part is the corrector.
        NonFiniteLoss: a step that was tried has a loss that is not finite. Other errors are those of `prepare`.
    """
    if config.part == "corrector" and not resume:
        raise ConfigError("part='corrector' is not accepted with --dry-run: what it would learn from is drawn first, which takes minutes")
    memory.limit(config)
    run = ready(config, folder, resume=resume)
    first, rest = _trial(run)  # before the memory is asked for
    lines = [header(run), *_configuration(run.config), *_parameters(run), *_time(run, first, rest), *_files(run)]
    return "\n".join([*lines, "nothing was written (--dry-run)"])


def _trial(run: Prepared) -> tuple[float, list[float]]:
    """The seconds of the first step, which may compile, and of some after it."""
    config, at = run.config, run.state.step
    step = TrainStep(run.model, run.optimiser, config, run.state.scaling())
    seconds: list[float] = []
    while len(seconds) <= MOST_STEPS and sum(seconds[1:]) < MOST_SECONDS:
        began = time.perf_counter()
        number = at + len(seconds)
        batches = micro_batches(run.pairs, run.order, number, config.gradient_accumulation_steps)
        launched = step.launch(number, batches, learning_rate(config, number, run.state.plateau))
        step.settle(launched)
        mx.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds[0], seconds[1:]


def _configuration(config: EnergyConfig) -> Iterator[str]:
    preset, changed = config.changes()
    start = EnergyConfig.preset(preset).to_dict()
    yield f"configuration: the preset {preset}" + (", but for" if changed else "")
    width = max(map(len, changed), default=0)
    for name, value in changed.items():
        yield f"  {name:{width}}  {value} (preset: {start[name]})"


def _parameters(run: Prepared) -> Iterator[str]:
    counts = _by_module(run.model.parameters())
    trained = _by_module(run.model.trainable_parameters())
    yield f"parameters: {sum(counts.values()):,}, of which {sum(trained.values()):,} are trained"
    width = max(map(len, counts))
    for name, count in counts.items():
        frozen = "" if trained[name] == count else f"  ({trained[name]:,} trained)"
        yield f"  {name:{width}}  {count:>13,}{frozen}"


def _by_module(parameters: Mapping[str, Any]) -> "Counter[str]":
    counts: Counter[str] = Counter()
    for name, array in named_arrays(parameters).items():
        counts[name.split(".")[0]] += array.size
    return counts


def _time(run: Prepared, first: float, rest: list[float]) -> Iterator[str]:
    config = run.config
    mean = sum(rest) / len(rest)
    left = max(config.training_steps - run.state.step, 0)
    pairs = config.batch_size * config.gradient_accumulation_steps
    yield f"memory of the trial: {mx.get_peak_memory() / memory.GB:.2f} GB at most"
    yield (
        f"time of a step: {mean:.3g} s in a trial of {len(rest)} (the first took {first:.3g} s), {pairs / mean:.0f} samples/s; "
        f"{left} steps take about {_duration(left * mean)}, without validations and checkpoints"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _files(run: Prepared) -> Iterator[str]:
    config = run.config
    model, moments = (sum(array.nbytes for array in named_arrays(tree).values()) for tree in (run.model.parameters(), run.optimiser.state))
    whole = _size(model + moments)
    yield f"what a run writes in {run.folder}:"
    names = dict.fromkeys((*FILES, *run.model.writers()))
    yield f"  {', '.join(names)}: {whole}, at the start, every {config.checkpoint_interval} steps and at the end"
    yield f"  {BEST}/: {_size(model)}, after each validation with a better {JUDGED_BY[config.part]}, every {config.validation_interval} steps"
    if config.keep_checkpoints:
        yield f"  {STEPS}/: {config.keep_checkpoints} times {whole}, the last checkpoints"
    yield f"  {METRICS}: a line every {config.log_interval} steps; {CURVES} and {RESULTS} at the end"
    for name in config.reporters:
        if name != "jsonl":
            yield f"  {name}/: the same numbers"


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
