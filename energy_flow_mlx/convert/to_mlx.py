"""Converting a torch checkpoint to a model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..config import EnergyConfig
from ..files import write_folder
from ..models import decoder_files
from ..models.decoder_files import HEAD, SHARED
from ..models.energy_flow import EnergyFlow
from ..nn import blank_weights
from ..strict_json import to_json, write_json
from ..tensors import as_dtype, listing, save_arrays
from ..text.tokeniser import Tokeniser
from ..train.optimiser import freeze_unreached, named_arrays
from .decoder import PREFIX, recover_t5_config, with_tokeniser
from .moments import BETAS, EPS, Moments, moments_from_torch, read_moments, to_optimiser_state
from .settings import RECORD, Shapes, config_from_torch
from .source import Source
from .summary import Row, by_module, rows_of
from .torch_keys import from_torch, to_torch

PARTS = {"mapper": "input_mapper.", "collector": "output_collector.", "text_encoder": "text_encoder."}


class Conversion(NamedTuple):
    """A converted checkpoint, not yet written.

    optimiser: the flat state of MLX's AdamW (see `to_optimiser_state`); None without moments.
    decoder, decoder_moments: by torch key, in torch's shapes.
    untrained: the parts that were initialised at random.
    rows, notes: the printed table and remarks.
    """

    model: EnergyFlow
    config: EnergyConfig
    optimiser: dict[str, np.ndarray] | None
    decoder: dict[str, np.ndarray]
    decoder_moments: Moments | None
    decoder_config: dict[str, Any]
    untrained: list[str]
    rows: list[Row]
    notes: list[str]
    source: Source


def convert(
    source: Source, dtype: str = "float32", init_missing: bool = False, overrides: Mapping[str, Any] | None = None
) -> Conversion:
    """Convert a checkpoint.

    Args:
        source: the checkpoint.
        dtype: dtype of the weights; moments stay float32.
        init_missing: initialise mapper, collector or text encoder at random if the checkpoint has none of its tensors.
        overrides: configuration fields that take precedence over the checkpoint's.

    Raises:
        ValueError: a key is unknown or missing, a shape is wrong, configuration and weights contradict each other, or
            the optimiser's state cannot be converted. The message lists all of them.
    """
    state = {key: value for key, value in source.tensors.items() if not key.startswith(PREFIX)}
    decoder = {key.removeprefix(PREFIX): value for key, value in source.tensors.items() if key.startswith(PREFIX)}
    shapes = {key: value.shape for key, value in source.tensors.items()}
    config, notes = config_from_torch(source.config, shapes, overrides or {}, source.training.get(RECORD))
    notes.append("neuron.coord_encoder: outputs 3 to 11, which torch computes but does not use, are dropped")
    if source.low_precision:
        notes.append(f"the source has {' and '.join(source.low_precision)} tensors, converted to float32 without loss")

    expected = torch_shapes(config)
    absent = [part for part, prefix in PARTS.items() if not any(key.startswith(prefix) for key in state)]
    check_tensors(state, expected, absent)
    if absent and not init_missing:
        raise ValueError(
            f"{', '.join(absent)} absent from the source: --mapper FILE adds input_mapper.* and output_collector.*; "
            "--init-missing initialises them at random"
        )
    untrained = [part for part in PARTS if part in absent or part in config.untrained_parts.split(",")]
    config = config.replace(untrained_parts=",".join(untrained) or "none")
    mx.random.seed(config.seed)
    with blank_weights():
        model = EnergyFlow(config)
    converted = from_torch(state, config)
    weights = as_dtype({name: item.value for name, item in converted.items()}, dtype)
    initial = named_arrays(model.parameters())
    missing = [name for name in initial if name not in weights]
    weights |= {name: initial[name].astype(getattr(mx, dtype)) for name in missing}
    model.load_weights(list(weights.items()))
    model.trained_steps = int(source.training.get("global_step", 0))
    rows = rows_of(converted)
    rows += [Row("absent", name, tuple(weights[name].shape), "initialised") for name in missing]

    ties = source.training.get("tied") or {}
    lost = [f"{key} to {target}" for key, target in ties.items() if target not in source.tensors]
    if lost:
        raise ValueError(f"the source ties {listing(lost)}, which it does not hold")
    rows += [
        Row(PREFIX + key, f"text_decoder.safetensors: {key}", tuple(value.shape), "carried")
        for key, value in decoder.items()
    ]
    rows += [Row(key, f"text_decoder.safetensors: {target.removeprefix(PREFIX)}", source.tensors[target].shape, "tied")
             for key, target in ties.items()]  # fmt: skip
    t5 = recover_t5_config({key: value.shape for key, value in decoder.items()}) if decoder else {}
    if decoder:
        head = decoder.get(HEAD)
        t5["tie_word_embeddings"] = head is None or np.array_equal(head, decoder[SHARED])
        t5["tied"] = {key.removeprefix(PREFIX): target.removeprefix(PREFIX) for key, target in ties.items()}
    else:
        notes.append("text decoder: absent")

    optimiser, decoder_moments = None, None
    moments = read_moments(source.moments)
    if moments is None:
        notes.append("optimiser's moments: absent")
    else:
        ours, decoder_moments = _split_moments(moments, source.tensors)
        optimiser, more_rows, more_notes = _optimiser_state(ours, model, config, source.training)
        rows += more_rows
        notes += more_notes
    return Conversion(model, config, optimiser, decoder, decoder_moments, t5, absent, rows, notes, source)


def torch_shapes(config: EnergyConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of torch's modules for this configuration, by prefixed key."""
    zero = np.zeros((), dtype=np.float32)
    with blank_weights():
        shapes = {name: array.shape for name, array in named_arrays(EnergyFlow(config).parameters()).items()}
    blank = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
    return {key: item.value.shape for key, item in to_torch(blank, config).items()}


def check_tensors(state: Mapping[str, np.ndarray], expected: Shapes, absent: list[str]) -> None:
    """Check the keys, shapes and dtypes of `state`, torch's tensors by prefixed key.

    Args:
        state: the tensors.
        expected: the shapes of all tensors.
        absent: parts whose tensors may be missing.

    Raises:
        ValueError: lists every tensor that is missing, unknown, of another shape or not floating-point.
    """
    prefixes = tuple(PARTS[part] for part in absent)
    missing = [key for key in expected if key not in state and not (prefixes and key.startswith(prefixes))]
    unknown = [key for key in state if key not in expected]
    misshapen = [
        f"{key} has shape {tuple(value.shape)}, the configuration requires {expected[key]}"
        for key, value in state.items()
        if key in expected and tuple(value.shape) != tuple(expected[key])
    ]
    misshapen += [
        f"{key} holds {value.dtype}, accepted are floating-point numbers"
        for key, value in state.items()
        if value.dtype.kind != "f"
    ]
    faults = [f"missing: {listing(missing)}"] if missing else []
    faults += [f"unknown: {listing(unknown)}"] if unknown else []
    faults += misshapen
    if faults:
        raise ValueError("the source does not fit: " + "; ".join(faults))


def write(
    conversion: Conversion, folder: Path, tokeniser: Path | None, decoder_tokeniser: Path | None = None
) -> list[str]:
    """Write the model folder atomically and return the names of its files.

    Raises:
        ValueError: the folder is not empty, a tokeniser has more entries than its token embedding has rows, or there is no decoder for
            `decoder_tokeniser`.
    """
    check_empty(folder)
    model, training = conversion.model, conversion.source.training
    if tokeniser is not None:
        model.text_encoder.tokeniser = Tokeniser.from_file(tokeniser)
        size, rows = model.text_encoder.tokeniser.vocab_size, model.config.text_vocab_size
        if size > rows:
            raise ValueError(f"{tokeniser}: {size} entries, the token embedding has {rows} rows")
    record = {
        "untrained": conversion.untrained,
        "torch_config": conversion.source.config,
        "training": training,
        "tensors": [row._asdict() for row in conversion.rows],
        "notes": conversion.notes,
    }
    writers: dict[str, Any] = {
        "config.json": conversion.config.to_json,
        "model.safetensors": model.save_weights_with_steps,
        "conversion.json": lambda path: write_json(path, record),
    }
    if model.text_encoder.tokeniser is not None:
        writers["tokenizer.json"] = model.text_encoder.tokeniser.save
    decoder_config = conversion.decoder_config
    if decoder_tokeniser is not None:
        if not conversion.decoder:
            raise ValueError(f"--decoder-tokenizer {decoder_tokeniser}: the source has no text decoder")
        theirs = Tokeniser.from_file(decoder_tokeniser)
        decoder_config = with_tokeniser(decoder_config, theirs, decoder_tokeniser)
        writers[decoder_files.TOKENISER] = theirs.save
    if conversion.decoder:
        dtype = str(model.neuron.coord_encoder.weight.dtype).removeprefix("mlx.core.")
        writers[decoder_files.TENSORS] = _saver(as_dtype(conversion.decoder, dtype), {"format": "pt"})
        writers[decoder_files.RECORD] = lambda path: write_json(path, decoder_config)
    if conversion.decoder_moments is not None:
        step = {"step": str(conversion.decoder_moments.step)}
        flat = {f"{key}.exp_avg": mx.array(value) for key, value in conversion.decoder_moments.first.items()}
        flat |= {f"{key}.exp_avg_sq": mx.array(value) for key, value in conversion.decoder_moments.second.items()}
        writers["text_decoder_optimizer.safetensors"] = _saver(flat, step)
    if conversion.optimiser is not None:
        steps = {"trained_steps": str(model.trained_steps)}
        arrays = {name: mx.array(value) for name, value in conversion.optimiser.items()}
        trainer = _trainer_state(model, conversion.config, training)
        writers["optimizer.safetensors"] = _saver(arrays, steps)
        writers["trainer.json"] = lambda path: write_json(path, trainer)
    write_folder(folder, writers)
    return list(writers)


def check_empty(folder: Path) -> None:
    """Raise ValueError unless the folder is new, empty, or holds only the remains of an interrupted write."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; --to takes a folder")
    if folder.is_dir() and any(path.name != ".incoming" for path in folder.iterdir()):
        raise ValueError(f"{folder}: exists and is not empty; name a new folder")


def _saver(arrays: dict[str, mx.array], metadata: dict[str, str]) -> Any:
    return lambda path: save_arrays(path, arrays, metadata)


def _split_moments(moments: Moments, tensors: Mapping[str, np.ndarray]) -> tuple[Moments, Moments | None]:
    """Split moments into those of our modules and those of the decoder, the latter by key without prefix."""
    faults = [f"{key} is not a tensor of the source" for key in moments.first if key not in tensors]
    faults += [
        f"{key}: {kind} has shape {values[key].shape}, the weight {tensors[key].shape}"
        for kind, values in (("exp_avg", moments.first), ("exp_avg_sq", moments.second))
        for key in values
        if key in tensors and values[key].shape != tensors[key].shape
    ]
    faults += [
        f"{key}: exp_avg_sq is negative" for key, value in moments.second.items() if value.size and value.min() < 0
    ]
    if faults:
        raise ValueError(f"optimizer: {listing(faults)}")

    def part(decoder: bool) -> Moments:
        first, second = (
            {key.removeprefix(PREFIX): value for key, value in values.items() if key.startswith(PREFIX) == decoder}
            for values in (moments.first, moments.second)
        )
        return Moments(first, second, moments.step)

    theirs = part(True)
    return part(False), theirs if theirs.first else None


def _optimiser_state(
    moments: Moments, model: EnergyFlow, config: EnergyConfig, training: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[Row], list[str]]:
    groups = training.get("param_groups") or [{}]
    if len({to_json({k: v for k, v in group.items() if k != "params"}, sort_keys=True) for group in groups}) > 1:
        raise ValueError(
            "optimizer: its parameter groups have different settings, but this package has one group; --without-optimizer converts without it"
        )
    group = groups[0]
    betas, eps = list(group.get("betas", BETAS)), group.get("eps", EPS)
    if betas != BETAS or eps != EPS or group.get("amsgrad"):
        raise ValueError(
            f"optimizer: betas {betas}, eps {eps}, amsgrad {bool(group.get('amsgrad'))} are not supported: this package's AdamW has "
            f"betas {BETAS}, eps {EPS} and no amsgrad; --without-optimizer converts without the moments"
        )
    freeze_unreached(model, config)
    trained = {name: tuple(array.shape) for name, array in named_arrays(model.trainable_parameters()).items()}
    model.unfreeze()
    ours = moments_from_torch(moments, config)
    notes = [f"optimiser: moments of {sum(name in trained for name in ours.first)} parameters after {ours.step} steps"]
    dropped = [name for name in ours.first if name not in trained]
    if dropped:
        notes.append(f"optimiser: moments dropped, this package does not train: {by_module(dropped)}")
    blank = [name for name in trained if name not in ours.first]
    if blank:
        notes.append(f"optimiser: moments missing, initialised with 0: {by_module(blank)}")
    rate = float(group.get("lr", config.learning_rate))
    rows = [
        Row(f"moments of {row.sources}", f"moments of {row.target}", row.shape, row.action)
        for row in rows_of(from_torch(moments.first, config))
        if row.target in trained
    ]
    return to_optimiser_state(ours, trained, rate), rows, notes


def _trainer_state(model: EnergyFlow, config: EnergyConfig, training: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of trainer.json for `train.checkpoint`, with the state of torch's plateau schedule."""
    scheduler = training.get("scheduler_state_dict") or {}
    best = scheduler.get("best")
    rate = (training.get("param_groups") or [{}])[0].get("lr", config.learning_rate)
    return {
        "step": model.trained_steps,
        "plateau": {
            "best": best if isinstance(best, int | float) and np.isfinite(best) else None,
            "waited": int(scheduler.get("num_bad_epochs") or 0),
            "factor": rate / config.learning_rate,
        },
        "best_validation_score": None,
        "best_step": 0,
    }
