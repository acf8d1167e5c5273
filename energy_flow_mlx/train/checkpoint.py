"""A run folder: config.json, model.safetensors, tokenizer.json, optimizer.safetensors, trainer.json, metrics.jsonl.

The first five change together (see `files.write_folder`), and with them the files of a text decoder that learns; metrics.jsonl grows, and
is cut back on resume.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_unflatten

from ..config import EnergyConfig, RunConfig
from ..files import naming, resolve, write_aside, write_folder
from ..metrics import FILE as METRICS
from ..metrics import read_lines
from ..models.corrector_files import RECORD as CORRECTOR_RECORD
from ..models.corrector_files import TENSORS as CORRECTOR_TENSORS
from ..models.corrector_files import corrector_writers
from ..models.decoder_files import RECORD, TENSORS, decoder_writers
from ..models.energy_flow import EnergyFlow
from ..models.energy_flow_files import OPTIONAL_FILES
from ..strict_json import read_json, to_json, write_json
from ..tensors import LOADED, listing, load_arrays, save_arrays
from .loss import number
from .loss_scale import LossScale
from .optimiser import Plateau, named_arrays
from .stages import not_finite

FILES = ("config.json", "model.safetensors", "tokenizer.json", "optimizer.safetensors", "trainer.json")


HYPOTHESES = "hypotheses.json"  # what a corrector learns from, drawn once


class NonFiniteState(ArithmeticError):
    """Weights or moments hold NaN or infinity and were not saved; the text names the step and the arrays."""


class CheckpointError(ValueError):
    """A run folder is incomplete, or its files do not fit each other; the text names the folder and the fault."""


# What early stopping and best/ go by, for each part that learns.
JUDGED_BY = {"all": "cosine", "corrector": "cosine", "decoder": "cross-entropy"}


@dataclass
class TrainerState:
    """What a run needs beside weights and optimiser state to go on as if it had not stopped."""

    step: int = 0  # optimiser steps done
    plateau: Plateau = field(default_factory=Plateau)
    best_validation_score: float = -math.inf  # the larger the better: the cosine; where a decoder learns alone, minus its cross-entropy
    best_step: int = 0
    loss_scale: float = 0.0  # of a float16 run; 0: at its start
    loss_scale_good: int = 0
    skipped_steps: int = 0
    data_fingerprint: str = ""  # empty where it is not known, as after a conversion

    def observe(self, loss: float, score: float, config: RunConfig) -> None:
        """Take note of a validation: the best score so far, and the loss for the schedule `plateau`."""
        if score > self.best_validation_score:
            self.best_validation_score, self.best_step = score, self.step
        # The validation after the last step is an extra one: it must not change the rate of a run that is resumed with more steps.
        if config.learning_rate_schedule == "plateau" and self.step % config.validation_interval == 0:
            self.plateau.observe(loss, config.plateau_patience)

    def best(self, part: str) -> tuple[str, float]:
        """What a run of `part` is judged by, and the best of it so far: -2.5 of a decoder is a cross-entropy of 2.5."""
        return JUDGED_BY[part], -self.best_validation_score if part == "decoder" else self.best_validation_score

    def exhausted(self, config: RunConfig) -> bool:
        """Whether `early_stopping` validations went by without a better score."""
        passed = self.step // config.validation_interval - self.best_step // config.validation_interval
        return 0 < config.early_stopping <= passed

    def finished(self, config: RunConfig) -> bool:
        """Whether the run has come to its end: all steps are done, or it is exhausted."""
        return self.step >= config.training_steps or self.exhausted(config)

    def scaling(self) -> LossScale | None:
        """Where the loss scaling of a float16 run stood; None at its start, and in other dtypes."""
        if not self.loss_scale:
            return None
        return LossScale.start(self.loss_scale, self.loss_scale_good, self.skipped_steps)

    def keep_scaling(self, scaling: LossScale) -> None:
        """Take over the loss scaling of a float16 run; waits for it."""
        scale, good, skipped = (number(value) for value in scaling)
        self.loss_scale, self.loss_scale_good, self.skipped_steps = scale, int(good), int(skipped)


def save(run: Path, model: EnergyFlow, optimiser: optim.Optimizer, config: EnergyConfig, state: TrainerState) -> None:
    """Replace the checkpoint in `run`. A kill at any moment leaves the old one or the new one.

    Raises:
        NonFiniteState: what should be saved is not finite; the old checkpoint stays.
        OSError: a file was not written, and is named; the old checkpoint stays.
    """
    if bad := _not_finite(model, optimiser):
        raise NonFiniteState(f"step {state.step}: not saved, NaN or infinity is in {bad}; {run} keeps its last checkpoint")
    tokeniser = model.text_encoder.tokeniser
    if tokeniser is None and config.text_loss_weight:
        raise CheckpointError(f"{run}: the model has no tokeniser to save; set text_encoder.tokeniser")
    optimiser_arrays = named_arrays(optimiser.state)
    trainer = _with_nulls(dataclasses.asdict(state))
    writers = {
        "config.json": config.to_json,
        "model.safetensors": model.save_weights_with_steps,
        "optimizer.safetensors": lambda path: save_arrays(path, optimiser_arrays, {"trained_steps": str(state.step)}),
        "trainer.json": lambda path: write_json(path, trainer),
    }
    if tokeniser is not None:
        writers["tokenizer.json"] = tokeniser.save
    # One that does not learn is written once: it may be large.
    if model.text_decoder is not None and (config.text_decoder_loss_weight or not resolve(run, RECORD).is_file()):
        writers |= decoder_writers(model.text_decoder)
    if model.text_corrector is not None and (config.part == "corrector" or not resolve(run, CORRECTOR_RECORD).is_file()):
        writers |= corrector_writers(model.text_corrector)
    write_folder(run, writers)


def require(run: Path) -> None:
    """See that every file of a checkpoint is in `run`, also after an interrupted write. Changes nothing.

    Raises:
        FileNotFoundError: names what is missing.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is no folder: --resume takes the folder of a run")
    missing = [name for name in FILES if not resolve(run, name).is_file()]
    if "config.json" not in missing:
        config = EnergyConfig.from_json(resolve(run, "config.json"))
        if missing == ["tokenizer.json"] and not config.text_loss_weight:
            missing = []  # trained on data without texts
        needed = [RECORD, TENSORS] if config.text_decoder_loss_weight or config.part == "corrector" else []
        needed += [CORRECTOR_RECORD, CORRECTOR_TENSORS, HYPOTHESES] if config.part == "corrector" else []
        missing += [name for name in needed if not resolve(run, name).is_file()]
    if missing:
        raise FileNotFoundError(f"{run} holds no checkpoint to resume: {', '.join(missing)} missing")


def read_state(run: Path) -> TrainerState:
    """The trainer's state in a run folder.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: the file holds something else; names it.
    """
    path = resolve(run, "trainer.json")
    try:
        return _trainer_state(read_json(path))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is not the trainer state of this version: {error!r}") from error


def files(run: Path) -> dict[str, Path]:
    """The files of the checkpoint in `run` by name, those that only a text decoder or corrector has among them, also after an interrupted write."""
    found = {name: resolve(run, name) for name in dict.fromkeys((*FILES, *OPTIONAL_FILES, HYPOTHESES))}
    return {name: path for name, path in found.items() if path.is_file()}


def load(run: Path, model: EnergyFlow, optimiser: optim.Optimizer) -> TrainerState:
    """Set `optimiser` to the checkpoint that `model` was loaded from, and return the trainer's state.

    Args:
        model: `EnergyFlow.from_pretrained(run)`, with what is frozen in training frozen.

    Raises:
        CheckpointError: the files are of different steps, the optimiser's state does not fit the model, or one is not finite.
    """
    state = read_state(run)
    path = resolve(run, "optimizer.safetensors")
    try:
        arrays, metadata = load_arrays(path, ("U64", *LOADED))
    except ValueError as error:  # the message names the file
        raise CheckpointError(str(error)) from error
    steps = {
        "trainer.json": str(state.step),
        "model.safetensors": str(model.trained_steps),
        "optimizer.safetensors": metadata.get("trained_steps", "none")[:80],
    }
    if len(set(steps.values())) > 1:
        told = ", ".join(f"{name} is of step {step}" for name, step in steps.items())
        raise CheckpointError(f"{run}: the files are of different steps: {told}")

    optimiser.init(model.trainable_parameters())
    wanted = {name: array.shape for name, array in named_arrays(optimiser.state).items()}
    held = {name: array.shape for name, array in arrays.items()}
    if wanted != held:
        faults = sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))
        raise CheckpointError(f"{path} does not fit the model of config.json at: {', '.join(faults)}")
    optimiser.state = tree_unflatten(list(arrays.items()))
    optimiser.init(model.trainable_parameters())  # puts back the empty entries of modules without parameters
    mx.eval(optimiser.state)
    if bad := _not_finite(model, optimiser):
        raise CheckpointError(f"{run}: NaN or infinity is in {bad}")
    return state


def _not_finite(model: EnergyFlow, optimiser: optim.Optimizer) -> str:
    return listing(not_finite(model.parameters()) + [f"the optimiser's {name}" for name in not_finite(optimiser.state)])


def append_metrics(run: Path, line: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl. Values that are not finite become null."""
    with naming(run / METRICS), open(run / METRICS, "a", encoding="utf-8") as file:
        file.write(to_json(_with_nulls(line), indent=None) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as `metrics.read_lines` gives them; none where there is no such file.

    Raises:
        CheckpointError: a line does not parse; names it.
    """
    if not (run / METRICS).is_file():
        return []
    try:
        return read_lines(run)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def cut_metrics(run: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, which a resumed run writes again."""
    kept = [to_json(line, indent=None) + "\n" for line in read_metrics(run) if line["step"] <= step]
    write_aside(run / METRICS, lambda aside: aside.write_text("".join(kept), encoding="utf-8"))


def _with_nulls(value: Any) -> Any:
    """Null stands for what is not finite, so that a column of numbers holds nothing else."""
    if isinstance(value, dict):
        return {key: _with_nulls(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _trainer_state(values: dict[str, Any]) -> TrainerState:
    values = {**values, "plateau": {**values["plateau"]}}
    if "best_validation_cosine" in values:  # as older files call it, a decoder's too
        values = dict(best_validation_score=values.pop("best_validation_cosine"), **values)
    if values["best_validation_score"] is None:
        values["best_validation_score"] = -math.inf
    if values["plateau"]["best"] is None:
        values["plateau"]["best"] = math.inf
    state = TrainerState(**{**values, "plateau": Plateau(**values["plateau"])})
    for part in (state, state.plateau):
        for each in dataclasses.fields(part):
            value, wanted = getattr(part, each.name), each.type
            fits = type(value) is wanted or (wanted is float and type(value) is int)
            if wanted in (int, float, str) and not fits:
                raise ValueError(f"{each.name} is {value!r}, accepted is {wanted.__name__}")
    return state
