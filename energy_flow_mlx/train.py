"""python -m energy_flow_mlx.train: train an energy-flow model and judge it on held-out pairs."""

import dataclasses
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from . import blas
from .cli import Parser, add_config_flags, flag, given_fields, layered_config
from .config import ConfigError, EnergyConfig
from .data.prefetch import Prefetch
from .data.records import DataError
from .data.source import EpochOrder, PairBatch, PairData, open_data
from .data.tokeniser import Tokeniser
from .files import INCOMING
from .models.energy_flow import EnergyFlow
from .ops.failures import KernelError, kernel_errors
from .training import checkpoint, memory
from .training.checkpoint import CheckpointError, TrainerState
from .training.loss_scale import LossScale
from .training.losses import number
from .training.mlp import mlp_row
from .training.optimiser import freeze_unreached, learning_rate, make_optimiser
from .training.profile import Profile
from .training.report import Evaluation, draw_curves, evaluate, held_out_rows, table
from .training.step import Launched, NonFiniteLoss, StepMetrics, TrainStep, micro_batches

_USAGE = (
    "%(prog)s [--preset NAME] [--config FILE] [--FIELD VALUE ...] [--out RUN | --resume RUN] [--profile DIR] "
    "[--mlp-baseline] [--quiet]"
)
_DESCRIPTION = (
    "Train an energy-flow model and judge it on held-out pairs. Without arguments: the tiny preset on built-in data. "
    "The preset comes first, --config goes over it, and the flags over both."
)

# What a resumed run may change: how long it goes on, how often it looks and writes, and where its data now lies.
RESUMABLE = ("training_steps", "validation_interval", "checkpoint_interval", "log_interval", "data")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (the loss became non-finite, or a kernel fails here), 2 (refused), 130 (interrupted)."""
    arguments = _parser().parse_args(argv)
    fields = given_fields(arguments)
    try:
        if arguments.resume is not None and arguments.out is not None:
            raise ConfigError(f"--out {arguments.out} is not accepted with --resume: a run stays in its folder")
        if arguments.resume is not None:
            run = arguments.resume
            config = _resumed_config(run, arguments.preset, arguments.config, fields)
        else:
            config = memory.within_budget(layered_config(arguments.preset, arguments.config, fields))
            run = arguments.out or Path("runs") / f"{arguments.preset or 'tiny'}-seed{config.seed}"
            _refuse_used(run)
        with kernel_errors():
            return train(
                config,
                run,
                resume=arguments.resume is not None,
                quiet=arguments.quiet,
                profile=arguments.profile,
                mlp_baseline=arguments.mlp_baseline,
            )
    except (ConfigError, CheckpointError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLoss, KernelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def train(
    config: EnergyConfig,
    run: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    profile: Path | None = None,
    mlp_baseline: bool = False,
) -> int:
    """Train until `config.training_steps`, from the checkpoint in `run` if `resume`; returns the exit code.

    Args:
        profile: folder for a trace of a few steps, see `training.profile`.
        mlp_baseline: train the MLP of `training.mlp` afterwards, for the final table.
    """
    watched = Profile(profile)
    memory.limit(config)
    has_tokeniser = resume and (run / "tokenizer.json").is_file()
    data = _open(config, Tokeniser.from_file(run / "tokenizer.json") if has_tokeniser else None)
    if data.tokeniser is None and config.text_loss_weight:
        print(f"{data.name} has no texts: text_loss_weight is 0 instead of {config.text_loss_weight:g}", file=sys.stderr)
        config = config.replace(text_loss_weight=0)
    order = _order(config, data)
    if resume:
        model = EnergyFlow.from_pretrained(run)
    else:
        mx.random.seed(config.seed)
        model = EnergyFlow(config)
        model.text_encoder.tokeniser = data.tokeniser
    freeze_unreached(model)
    model.train()
    optimiser = make_optimiser(config)
    optimiser.init(model.trainable_parameters())
    if resume:
        state = checkpoint.load(run, model, optimiser)
        if state.data_fingerprint not in ("", data.fingerprint):
            raise CheckpointError(
                f"{run} was trained on the data {state.data_fingerprint}, {config.data} is {data.fingerprint}: "
                "a run resumes on its own data"
            )
        state.data_fingerprint = data.fingerprint
        checkpoint.cut_metrics(run, state.step)
    else:
        state = TrainerState(data_fingerprint=data.fingerprint)
        checkpoint.save(run, model, optimiser, config, state)  # from here on a kill leaves a run to resume
    if not quiet:
        on_cpu = mx.default_device().type == mx.DeviceType.cpu
        products = f", products by {blas.description()}" if on_cpu and blas.description() else ""
        print(f"{run}: {data.name}, {len(data.train)} pairs, {mx.default_device()}{products}")
        expected = memory.predicted(config).total / memory.GB
        how = f"checkpoints every {config.checkpoint_steps} steps" if config.gradient_checkpointing else "no checkpointing"
        queue = memory.queued(config) / memory.GB
        queueing = f", and about {queue:.2f} GB of results that queue" if queue else ""
        print(f"memory of a step: {expected:.2f} GB expected ({how}){queueing}")

    step = TrainStep(model, optimiser, config, _loss_scale(state))

    def read(step: int) -> list[PairBatch]:
        return micro_batches(data.train, order, step, config.gradient_accumulation_steps)

    saved = state.step
    ahead = Prefetch(read, config.training_steps - 1)
    with _StopRequest() as stop, ahead, _Progress(config, state.step, quiet) as progress:

        def report(launched: Launched, rate: float) -> None:
            metrics = step.settle(launched)
            model.processor.log_overflow(int(number(metrics.parts.overflowed)))
            progress.after_step(metrics)
            done = launched.step + 1
            if done % config.log_interval == 0 or done == config.training_steps:
                checkpoint.append_metrics(run, progress.line(done, metrics, rate))

        pending: tuple[Launched, float] | None = None
        while state.step < config.training_steps:
            rate = learning_rate(config, state.step, state.plateau)
            with watched.step(state.step, step):
                launched = step.launch(state.step, ahead(state.step), rate)
            if pending is not None:
                report(*pending)  # the numbers of the step before, while the device works on this one
            pending = launched, rate
            state.step += 1
            last = state.step == config.training_steps
            validating = state.step % config.validation_interval == 0 or last
            saving = state.step % config.checkpoint_interval == 0 or last or stop.requested
            if validating or saving:
                report(*pending)
                pending = None
            if validating:
                result = evaluate(model, data.validation, config.batch_size)
                progress.validated(result)
                checkpoint.append_metrics(run, _validation_line(state, result))
                _take_note(state, result, config)
            if saving:
                _keep_loss_scale(state, step)
                checkpoint.save(run, model, optimiser, config, state)
                saved = state.step
            if stop.requested and saving and not last:
                break
    if profile is not None:
        print(
            f"{watched.written} has the trace" if watched.written else f"{profile}: the run was too short for a trace"
        )
    if saved < config.training_steps:
        print(f"stopped and saved at step {saved}; go on with:\n  python -m energy_flow_mlx.train --resume {run}")
        return 130

    if not quiet:
        print(f"memory of the run: {mx.get_peak_memory() / memory.GB:.2f} GB at most")
    draw_curves(run / "curves.png", checkpoint.read_metrics(run))
    rows = held_out_rows(model, data, config.batch_size)
    if mlp_baseline:
        rows.append(mlp_row(model, data, config))
    print(table(rows, f"{len(data.test)} held-out test pairs of {data.name}"))
    return 0


def _loss_scale(state: TrainerState) -> LossScale | None:
    if not state.loss_scale:
        return None
    return LossScale.start(state.loss_scale, state.loss_scale_good, state.skipped_steps)


def _keep_loss_scale(state: TrainerState, step: TrainStep) -> None:
    if step.scaled:
        scale, good, skipped = (number(value) for value in step.loss_scale)
        state.loss_scale, state.loss_scale_good, state.skipped_steps = scale, int(good), int(skipped)


def _parser() -> Parser:
    parser = Parser(prog="python -m energy_flow_mlx.train", usage=_USAGE, description=_DESCRIPTION)
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder, bit-identically")
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="new folder for the run (default: runs/<preset>-seed<seed>)"
    )
    parser.add_argument("--profile", type=Path, metavar="DIR", help="leave a trace of a few steps in this folder")
    parser.add_argument("--quiet", action="store_true", help="print the final table alone")
    parser.add_argument("--mlp-baseline", action="store_true", help="train an MLP of the model's size for the final table")
    add_config_flags(parser)
    return parser


def _resumed_config(
    run: Path, preset: str | None, file: Path | None, fields: Mapping[str, Any]
) -> EnergyConfig:
    """The run's own configuration, with what a resumed run may change."""
    refused = [flag(name) for name in fields if name not in RESUMABLE]
    refused += ["--preset"] if preset is not None else []
    refused += ["--config"] if file is not None else []
    if refused:
        raise ConfigError(
            f"--resume takes the configuration from {run}; {', '.join(refused)} cannot be changed, "
            f"accepted are {', '.join(flag(name) for name in RESUMABLE)}"
        )
    checkpoint.require(run)
    return EnergyConfig.from_json(run / "config.json").replace(**fields)


def _refuse_used(run: Path) -> None:
    if run.is_file() or (run.is_dir() and any(path.name != INCOMING for path in run.iterdir())):
        raise FileExistsError(f"{run} is not empty: go on with it (--resume {run}) or choose another folder (--out)")


def _open(config: EnergyConfig, tokeniser: Tokeniser | None) -> PairData:
    try:
        return open_data(
            config.data,
            train=config.train_pairs,
            validation=config.validation_pairs,
            test=config.test_pairs,
            seed=config.seed,
            dim=config.embedding_dim,
            vocab_size=config.text_vocab_size,
            max_length=config.text_max_length,
            tokeniser=tokeniser,
        )
    except ValueError as error:  # its text names the argument, which the configuration gave
        raise ConfigError(str(error)) from error


def _order(config: EnergyConfig, data: PairData) -> EpochOrder:
    try:
        return EpochOrder(len(data.train), config.batch_size, config.seed)
    except ValueError as error:
        raise ConfigError(f"{data.name}: {error}") from error


def _validation_line(state: TrainerState, result: Evaluation) -> dict[str, Any]:
    values = dataclasses.asdict(result)
    return {"step": state.step, **{f"validation_{name}": value for name, value in values.items()}}


def _take_note(state: TrainerState, result: Evaluation, config: EnergyConfig) -> None:
    if result.cosine > state.best_validation_cosine:
        state.best_validation_cosine, state.best_step = result.cosine, state.step
    # A validation that is there only because the run ends here must not move the rate of a run that goes on.
    if config.learning_rate_schedule == "plateau" and state.step % config.validation_interval == 0:
        state.plateau.observe(result.loss, config.plateau_patience)


class _StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a flag that is read between steps; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "_StopRequest":
        self._before = {caught: signal.signal(caught, self._take) for caught in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for caught, handler in self._before.items():
            signal.signal(caught, handler)

    def _take(self, caught: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


class _Progress:
    """The progress bar, and the numbers behind it."""

    def __init__(self, config: EnergyConfig, start: int, quiet: bool) -> None:
        self._bar = tqdm(
            total=config.training_steps, initial=start, disable=quiet, unit="step", dynamic_ncols=True, smoothing=0.1
        )
        self._pairs_a_step = config.batch_size * config.gradient_accumulation_steps
        self._shown: dict[str, str] = {}
        self._steps, self._seconds, self._began = 0, 0.0, time.perf_counter()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def after_step(self, metrics: StepMetrics) -> None:
        """Count a step. Its seconds are those since the last step or validation ended."""
        now = time.perf_counter()
        self._steps, self._seconds, self._began = self._steps + 1, self._seconds + now - self._began, now
        parts = metrics.parts
        self._shown["loss"] = f"{number(metrics.loss):.4f}"
        self._shown["arrived"] = f"{number(parts.arrived) / max(number(parts.ended), 1):.0%}"
        self._shown["samples/s"] = f"{self._samples_per_second():.0f}"
        self._shown["peak"] = f"{mx.get_peak_memory() / 2**30:.2f} GiB"
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()

    def validated(self, result: Evaluation) -> None:
        """Show a validation, and leave its time out of the samples a second."""
        self._shown = {"loss": self._shown["loss"], "val cosine": f"{result.cosine:.4f}", **self._shown}
        self._shown["val cosine"] = f"{result.cosine:.4f}"
        self._bar.set_postfix(self._shown, refresh=False)
        self._began = time.perf_counter()

    def line(self, step: int, metrics: StepMetrics, rate: float) -> dict[str, Any]:
        """The line of metrics.jsonl for this step."""
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


if __name__ == "__main__":
    sys.exit(main())
