"""A training run: data, step, report, validate, save."""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..config import EnergyConfig
from ..data.prefetch import Prefetch
from ..data.source import PairBatch
from ..lock import locked
from ..scores import Evaluation
from . import checkpoint, keeping, memory
from .callbacks import Callback, Callbacks
from .evaluation import evaluate
from .interrupt import StopRequest
from .loss import number
from .optimiser import learning_rate
from .prepare import Prepared, ended_early, header, prepare
from .profile import Profile
from .progress import Progress
from .report import held_out, try_curves
from .reporters import reporting
from .rescue import rescued
from .step import Launched, TrainStep, micro_batches


def train(
    config: EnergyConfig,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    quiet: bool = False,
    profile: str | os.PathLike[str] | None = None,
    mlp_baseline: bool = False,
    ablation: bool = False,
    callbacks: Sequence[Callback] = (),
    stop: StopRequest | None = None,
) -> int:
    """Train until `config.training_steps`, from the checkpoint in `folder` if `resume`.

    Args:
        profile: folder for a trace of a few steps, see `train.profile`.
        mlp_baseline: afterwards train an MLP of the model's size, for the final table.
        ablation: afterwards train the model with its flow left out, for the final table.
        callbacks: hear of steps, validations and checkpoints.
        stop: once it is requested, the run is saved and ends.

    Returns:
        The exit code: 0, or 130 for a run that a signal stopped and that was saved.

    Raises:
        NonFiniteLoss: the folder holds the last checkpoint before it.
        OSError: the folder is in use by another training, or something could not be read or written; see `rescued`.
    """
    folder = Path(folder)
    trace = Profile(None if profile is None else Path(profile))
    with locked(folder):
        memory.limit(config)
        run = prepare(config, folder, resume=resume)
        if resume:  # what a kill left undone
            keeping.keep(folder, run.state.step, config.keep_checkpoints)
        if not quiet:
            print(header(run), flush=True)
        began_at, began = run.state.step, time.perf_counter()
        with reporting(config, folder, run.state.step) as reporters:
            loop(run, trace, quiet, Callbacks([*reporters, *callbacks]), stop or StopRequest())
        seconds = time.perf_counter() - began
        if profile is not None:
            print(f"{trace.written} has the trace" if trace.written else f"{profile}: the run was too short for a trace")
        if not run.state.finished(config):
            print(f"stopped and saved at step {run.state.step}; go on with:\n  python -m energy_flow_mlx.train --resume {folder}")
            return 130
        if run.state.step < config.training_steps:
            print(ended_early(run), flush=True)
        if not quiet:
            print(f"memory of the run: {mx.get_peak_memory() / memory.GB:.2f} GB at most")
        try:
            try_curves(folder)  # now, because the table may take long and be interrupted
            results = held_out(run.model, run.data, run.config, mlp=mlp_baseline, ablation=ablation)
            results = dataclasses.replace(results, seconds={"training": seconds, **results.seconds}, resumed_at=began_at)
            results.save(folder)
            try_curves(folder, results.splits["test"])
        except KeyboardInterrupt:
            print(f"interrupted: the run is complete and saved; for the table:\n  python -m energy_flow_mlx.evaluate {folder}", file=sys.stderr)
            return 130
    print(results)
    return 0


def loop(run: Prepared, trace: Profile, quiet: bool, callbacks: Callbacks, stop: StopRequest) -> None:
    """The training loop, up to the last step, to early stopping or to the first Ctrl-C; it ends with everything saved."""
    config, state, model = run.config, run.state, run.model
    step = TrainStep(model, run.optimiser, config, state.scaling())
    validated = state.step

    def read(step: int) -> list[PairBatch]:
        return micro_batches(run.data.train, run.order, step, config.gradient_accumulation_steps)

    def report(launched: Launched | None) -> None:
        if launched is not None:
            metrics = step.settle(launched)
            model.processor.log_overflow(int(number(metrics.parts.overflowed)))
            progress.trained(launched, metrics)

    def due() -> bool:
        return state.step == config.training_steps or state.step % config.validation_interval == 0

    def validate() -> Evaluation:
        nonlocal validated
        result = evaluate(model, run.data.validation, config)
        state.observe(result.loss, result.cosine, config)
        validated = state.step
        return result

    def keep_best(folder: Path) -> None:
        if 0 < state.best_step == state.step:
            keeping.save_best(folder, model, config)

    def save(folder: Path) -> None:
        if step.scaled:
            state.keep_scaling(step.loss_scale)
        keep_best(folder)
        checkpoint.save(folder, model, run.optimiser, config, state)

    def save_early(folder: Path) -> None:
        if due() and validated < state.step:  # a resumed run goes on after this step's validation
            validate()
        save(folder)

    ahead = Prefetch(read, config.training_steps - 1)
    progress = Progress(run.folder, config, state.step, quiet or state.finished(config), callbacks)
    with stop, ahead, rescued(run, step, save_early), progress:
        launched: Launched | None = None
        while not state.finished(config):
            with trace.step(state.step, step):
                rate = learning_rate(config, state.step, state.plateau)
                before, launched = launched, step.launch(state.step, ahead(state.step), rate)
            state.step += 1
            report(before)  # the numbers of the step before, while the device works on this one
            validating = due()
            saving = state.step == config.training_steps or state.step % config.checkpoint_interval == 0 or stop.requested
            if validating or saving:
                report(launched)
                launched = None
            if validating:
                progress.validated(state.step, validate())
                saving = saving or state.exhausted(config)
                if not saving:
                    keep_best(run.folder)
            if saving:
                save(run.folder)
                keeping.keep(run.folder, state.step, config.keep_checkpoints)
                progress.saved(state.step)
            if saving and stop.requested:
                break
