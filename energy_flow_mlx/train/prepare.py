"""What stands before the first step of a run: data, model, optimiser, and where a saved run stopped."""

import logging
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from .. import blas
from ..config import ConfigError, EnergyConfig
from ..data.source import EpochOrder, PairData, PairDataset
from ..dataset.open import data_of_run
from ..files import resolve, settle
from ..models.energy_flow import EnergyFlow
from ..models.text_decoder import CubeToTextDecoder
from . import checkpoint, memory
from .checkpoint import CheckpointError, TrainerState
from .correction import Lessons, add_corrector, open_lessons
from .decoding import decoder_settings
from .init_from import initial_model
from .keeping import BEST
from .optimiser import AdamW, start_training

logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """A run that is ready for its next step."""

    folder: Path
    config: EnergyConfig
    data: PairData
    order: EpochOrder
    model: EnergyFlow
    optimiser: AdamW
    state: TrainerState
    lessons: Lessons | None  # what a text corrector learns from, in place of the data

    @property
    def pairs(self) -> PairDataset:
        """What the steps read."""
        return self.data.train if self.lessons is None else self.lessons.train


def prepare(config: EnergyConfig, folder: Path, *, resume: bool) -> Prepared:
    """A new run, saved before its first step so that a kill leaves a run to resume; or the one saved in `folder`.

    Raises as `ready`.
    """
    if resume:
        settle(folder)
    run = ready(config, folder, resume=resume)
    if resume:
        checkpoint.cut_metrics(folder, run.state.step)
    else:
        checkpoint.save(folder, run.model, run.optimiser, run.config, run.state)
    return run


def ready(config: EnergyConfig, folder: Path, *, resume: bool) -> Prepared:
    """A new run, or the one saved in `folder`, in memory alone: nothing is written, but for the hypotheses of a corrector.

    Raises:
        ConfigError: the data, or the model of `init_from`, do not fit the configuration, or a resumed run has done more steps than it asks for.
        CheckpointError: `folder` holds no complete checkpoint, or one that was trained on other data.
    """
    given, config = _given_model(config, folder if resume else None)
    data = data_of_run(config, None if given is None else given.text_encoder.tokeniser)
    if data.tokeniser is None and config.text_loss_weight:
        logger.warning("%s has no texts: text_loss_weight is 0 instead of %g", data.name, config.text_loss_weight)
        config = config.replace(text_loss_weight=0)
    model = _new_model(config) if given is None else given
    if model.text_encoder.tokeniser is None:
        model.text_encoder.tokeniser = data.tokeniser
    if not resume:
        _add_decoder(model, config)
    lessons = None
    if config.part == "corrector":
        if not resume:
            _check_lessons(config, data)
            add_corrector(model, config)
        lessons = open_lessons(model, data, config, folder, resume=resume)
    try:
        order = EpochOrder(len(data.train if lessons is None else lessons.train), config.batch_size, config.seed)
    except ValueError as error:
        raise ConfigError(f"{data.name}: {error}") from error
    optimiser = start_training(model, config)
    if resume:
        state = checkpoint.load(folder, model, optimiser)
        if state.data_fingerprint not in ("", data.fingerprint):
            raise CheckpointError(
                f"{folder} was trained on the data {state.data_fingerprint}, {config.data} is {data.fingerprint}: "
                "a run resumes on its own data"
            )
        if config.training_steps < state.step:
            raise ConfigError(f"training_steps={config.training_steps} is not accepted: {folder} has done {state.step} steps already")
        state.data_fingerprint = data.fingerprint
    else:
        state = TrainerState(data_fingerprint=data.fingerprint)
    return Prepared(folder, config, data, order, model, optimiser, state, lessons)


def _given_model(config: EnergyConfig, saved: Path | None) -> tuple[EnergyFlow | None, EnergyConfig]:
    """The model that was `saved`, or the one that `init_from` names, and the configuration that fits it; None: there is none, and
    weights are random."""
    try:
        if saved is not None:
            return EnergyFlow.from_pretrained(saved), config
        return initial_model(config) if config.starts_from_a_model else (None, config)
    except ConfigError:
        raise
    except ValueError as error:  # the message names the file
        raise CheckpointError(str(error)) from error


def _new_model(config: EnergyConfig) -> EnergyFlow:
    mx.random.seed(config.seed)
    return EnergyFlow(config)


def _check_lessons(config: EnergyConfig, data: PairData) -> None:
    """Refuse a batch that the lessons cannot fill before they are drawn, which takes minutes."""
    count = 2 * min(config.text_corrector_pairs, len(data.train))
    if config.batch_size > count:
        raise ConfigError(f"batch_size={config.batch_size} is not accepted: the corrector has {count} texts to learn from")


def ended_early(run: Prepared) -> str:
    """Of a run that early stopping ended: when, why, and where its best model is."""
    config, state = run.config, run.state
    watched, score = state.best(config.part)
    best = f"the best {watched} is {score:.4f}, of step {state.best_step}" if state.best_step else f"none had a {watched}"
    where = f"; its model is in {run.folder / BEST}" if resolve(run.folder / BEST, "config.json").is_file() else ""
    return f"ended at step {state.step}: {config.early_stopping} validations without a better {watched}; {best}{where}"


def _add_decoder(model: EnergyFlow, config: EnergyConfig) -> None:
    """Give the model a text decoder of random weights, if one is to learn and there is none.

    Raises:
        ConfigError: there is one of other sizes, or the tokeniser does not fit.
    """
    tokeniser = model.text_encoder.tokeniser
    if not config.text_decoder_loss_weight:
        return
    assert tokeniser is not None, "data_of_run refuses data without texts"
    settings = decoder_settings(config, tokeniser)
    if model.text_decoder is None:
        model.text_decoder = CubeToTextDecoder(settings)
        model.text_decoder.tokeniser = tokeniser
    elif model.text_decoder.settings != settings:
        raise ConfigError(
            f"{config.init_from} has a text decoder of other sizes than the configuration asks for:\n{model.text_decoder.settings}\n{settings}"
        )


def header(run: Prepared, processes: int = 1) -> str:
    """Two lines before the first step: data and device, and the memory that a step is expected to take. Of a complete run one, which says
    what is still done."""
    config = memory.share(run.config, processes)
    if run.state.finished(config):
        ended = f"early_stopping={config.early_stopping} ended it at step {run.state.step} (--early-stopping 0 goes on)"
        done = f"all {run.state.step} steps are done (--training-steps goes on)"
        return f"{run.folder} is complete: {done if run.state.step == config.training_steps else ended}; evaluating it once more"
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    products = f", products by {blas.description()}" if on_cpu and blas.description() else ""
    steps = "every step" if config.checkpoint_steps == 1 else f"every {config.checkpoint_steps} steps"
    how = f"flows stored {steps} and recomputed" if config.gradient_checkpointing else "nothing recomputed"
    queue = memory.queued(config) / memory.GB
    queueing = f", and about {queue:.2f} GB of results that queue" if queue else ""
    several = f", {processes} processes" if processes > 1 else ""
    return (
        f"{run.folder}: {run.data.name}, {len(run.data.train)} pairs, {mx.default_device()}{products}{several}\n"
        f"memory of a step: {memory.predicted(config).total / memory.GB:.2f} GB expected ({how}){queueing}"
    )
