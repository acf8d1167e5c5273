"""A training run: data, step, report, validate, save."""

import dataclasses
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx

from ..config import EnergyConfig
from ..data.prefetch import Prefetch
from ..data.source import PairBatch
from ..distributed import ALONE, World
from ..lock import locked
from ..program import call_of
from ..scores import Evaluation
from . import checkpoint, keeping, memory, together
from .callbacks import Callback, Callbacks
from .correction import Corrected
from .evaluation import evaluate
from .interrupt import StopRequest
from .loss import number
from .optimiser import AdamW, learning_rate
from .prepare import Prepared, ended_early, header, prepare
from .profile import Profile
from .progress import Progress
from .report import held_out, try_curves
from .reporters import reporting
from .rescue import rescued
from .sharded import ShardedAdamW, whole
from .step import Launched, TrainStep, micro_batches

logger = logging.getLogger(__name__)


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
    world: World = ALONE,
    shard_optimiser: bool = False,
) -> int:
    """Train until `config.training_steps`, from the checkpoint in `folder` if `resume`.

    Args:
        profile: folder for a trace of a few steps, see `train.profile`.
        mlp_baseline: afterwards train an MLP of the model's size, for the final table.
        ablation: afterwards train the model with its flow left out, for the final table.
        callbacks: hear of steps, validations and checkpoints.
        stop: once it is requested, the run is saved and ends.
        world: the processes that train together; this is the first of them, and the others are in `follow`.
        shard_optimiser: the processes divide the moments of AdamW among them.

    Returns:
        The exit code: 0, or 130 for a run that a signal stopped and that was saved.

    Raises:
        NonFiniteLoss: the folder holds the last checkpoint before it.
        OSError: the folder is in use by another training, or something could not be read or written; see `rescued`.
    """
    folder = Path(folder)
    trace = Profile(None if profile is None else Path(profile))
    with locked(folder):
        memory.limit(memory.share(config, world.size))
        run = prepare(config, folder, resume=resume)
        if resume:  # what a kill left undone
            keeping.keep(folder, run.state.step, config.keep_checkpoints)
        if not quiet:
            print(header(run, world.size), flush=True)
        run = together.lead(world, run, shard_optimiser)
        began_at, began = run.state.step, time.perf_counter()
        with reporting(config, folder, run.state.step) as reporters:
            loop(run, trace, quiet, Callbacks([*reporters, *callbacks]), stop or StopRequest(), world)
        seconds = time.perf_counter() - began
        if trace.written and not quiet:
            print(f"{trace.written} has the trace")
        if profile is not None and not trace.written:
            logger.warning("%s: the run was too short for a trace", profile)
        if not run.state.finished(config):
            print(f"stopped and saved at step {run.state.step}; go on with:\n  {call_of('train')} --resume {folder}")
            return 130
        if run.state.step < config.training_steps and not quiet:
            print(ended_early(run), flush=True)
        if run.state.step > began_at and not quiet:
            print(f"memory of the run: {mx.get_peak_memory() / memory.GB:.2f} GB at most")
        results = None
        try:
            try_curves(folder)  # now, because the table may take long and be interrupted
            results = held_out(run.model, run.data, run.config, mlp=mlp_baseline, ablation=ablation, world=world)
            results = dataclasses.replace(results, seconds={"training": seconds, **results.seconds}, resumed_at=began_at)
            results.save(folder)
            try_curves(folder, results.splits["test"])
        except KeyboardInterrupt:
            if results is not None:  # only its picture was not drawn
                print(results)
                return 130
            print(f"interrupted: the run is complete and saved; for the table:\n  {call_of('evaluate')} {folder}", file=sys.stderr)
            return 130
    print(results)
    return 0


def follow(world: World) -> int:
    """What `train` is to the first process, for another one: it trains its share of each batch, and writes nothing.

    Returns:
        The exit code, that of `train`.

    Raises as `train`.
    """
    run = together.follow(world)
    loop(run, Profile(None), True, Callbacks(()), StopRequest(tells=False), world)
    if not run.state.finished(run.config):
        return 130
    evaluate(run.model, run.data.test, run.config, world)
    return 0


def loop(run: Prepared, trace: Profile, quiet: bool, callbacks: Callbacks, stop: StopRequest, world: World) -> None:
    """The training loop, up to the last step, to early stopping or to the first Ctrl-C; it ends with everything saved."""
    config, state, model = run.config, run.state, run.model
    step = TrainStep(model, run.optimiser, config, state.scaling(), world, lambda: stop.requested)
    order = together.OwnPairs(run.order, world)
    validated = state.step
    asked_to_stop = False

    def read(step: int) -> list[PairBatch]:
        return micro_batches(run.pairs, order, step, config.gradient_accumulation_steps)

    def report(launched: Launched | None) -> None:
        nonlocal asked_to_stop
        if launched is not None:
            metrics = step.settle(launched)
            if world.size > 1:
                asked_to_stop = asked_to_stop or number(launched.stops) > 0
            if world.first:
                model.processor.log_overflow(int(number(metrics.parts.overflowed)))
            progress.trained(launched, metrics)

    def stopping() -> bool:
        # Several processes learn from a step's numbers that one was asked to stop, and stop after the same step.
        return stop.requested if world.size == 1 else asked_to_stop

    def due() -> bool:
        return state.step == config.training_steps or state.step % config.validation_interval == 0

    def validate(among: World = world) -> Evaluation | Corrected:
        nonlocal validated
        if run.lessons is None:
            result: Evaluation | Corrected = evaluate(model, run.data.validation, config, among)
        else:
            result = run.lessons.evaluate(model, config)
        # Where the decoder learns alone the cosine stands still: of its results the better one has the smaller cross-entropy.
        score = -result.decoding if config.part == "decoder" and isinstance(result, Evaluation) else result.cosine
        state.observe(result.loss, score, config)
        validated = state.step
        return result

    def keep_best(folder: Path) -> None:
        if 0 < state.best_step == state.step:
            keeping.save_best(folder, model, config)

    def save(folder: Path, optimiser: AdamW) -> None:
        if step.scaled:
            state.keep_scaling(step.loss_scale)
        keep_best(folder)
        checkpoint.save(folder, model, optimiser, config, state)

    def save_early(folder: Path) -> None:
        if due() and validated < state.step:  # a resumed run goes on after this step's validation
            validate(ALONE)  # the other processes do not know of the error
        save(folder, run.optimiser)

    ahead = Prefetch(read, config.training_steps - 1)
    silent = quiet or state.finished(config)
    progress = Progress(run.folder, config, state.step, silent, callbacks) if world.first else together.Unheard()
    alone = world.first and not isinstance(run.optimiser, ShardedAdamW)  # this process can save without the others
    saves = rescued(run, step, save_early) if alone else nullcontext()
    advice = f"; {run.folder} keeps its last checkpoint, go on with:\n  {call_of('train')} --resume {run.folder}"
    with world.watched(advice), stop, ahead, saves, progress:
        launched: Launched | None = None
        while not state.finished(config):
            world.mark(f"step {state.step}")
            with trace.step(state.step, step):
                rate = learning_rate(config, state.step, state.plateau)
                before, launched = launched, step.launch(state.step, ahead(state.step), rate)
            state.step += 1
            report(before)  # the numbers of the step before, while the device works on this one
            validating = due()
            saving = state.step == config.training_steps or state.step % config.checkpoint_interval == 0 or stopping()
            if validating or saving:
                report(launched)
                launched = None
            if validating:
                progress.validated(state.step, validate())
                saving = saving or state.exhausted(config)
                if not saving and world.first:
                    keep_best(run.folder)
            if saving:
                world.require_same("the weights", model.trainable_parameters())
                optimiser = whole(run.optimiser)
                if world.first:
                    save(run.folder, optimiser)
                    keeping.keep(run.folder, state.step, config.keep_checkpoints)
                del optimiser
                progress.saved(state.step)
            if saving and stopping():
                break
