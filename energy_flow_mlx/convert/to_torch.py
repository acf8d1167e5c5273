"""Converting a model folder to a torch checkpoint: checkpoint.pt and mapper.pt."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..config import EnergyConfig
from ..files import resolve, write_folder
from ..models.energy_flow import EnergyFlow
from ..strict_json import read_json
from ..tensors import check_finite, listing, read_tensors
from .decoder import PREFIX
from .settings import RECORD, config_to_torch, fields_beside, notes_for_torch
from .source import require_torch
from .summary import Row, rows_of
from .to_mlx import check_empty
from .torch_keys import to_torch
from .torch_optimiser import in_torch_order, torch_optimiser
from .training import check_training, for_torch

MODEL, ENCODER, MAPPER = ("neuron.", "carrier."), "text_encoder.", ("input_mapper.", "output_collector.")
WRITE_HINT = "writing .pt files needs torch: pip install torch"
NOT_INVERTIBLE = (
    "not invertible: neuron.coord_encoder's outputs 3 to 11, which are unused, are 0",
    "not invertible: the summed biases of the gates r and z are in bias_ih; bias_hh is 0 for these gates",
)


def convert_to_torch(folder: Path, out: Path, dtype: str, with_optimizer: bool) -> tuple[list[Row], list[str]]:
    """Write `checkpoint.pt`, in the PyTorch trainer's layout, and `mapper.pt`.

    Args:
        folder: the model folder.
        out: the new folder.
        dtype: dtype of the weights; moments stay float32.
        with_optimizer: write the optimiser's state too.

    Returns:
        The rows of the printed table, and notes.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, holds NaN or does not fit; names it.
    """
    check_empty(out)
    require_torch(out, WRITE_HINT)
    import torch

    model = EnergyFlow.from_pretrained(folder)
    if model.quantised_bits:
        raise ValueError(f"{folder}: its weights are quantised to {model.quantised_bits} bits; convert the model that it was made from")
    config = EnergyConfig.from_json(resolve(folder, "config.json"))
    parameters = {name: np.array(array.astype(mx.float32)) for name, array in model.flow_parameters().items()}
    check_finite(str(folder), parameters)
    converted = to_torch(parameters, config)
    rows, notes = rows_of(converted), [*NOT_INVERTIBLE, *notes_for_torch(config)]

    record_file = resolve(folder, "conversion.json")
    record = for_torch(read_json(record_file)) if record_file.is_file() else {}
    training = check_training(record_file, record.get("training"))
    arrays = {key: item.value for key, item in converted.items()}
    shapes = {key: value.shape for key, value in arrays.items()}
    torch_config = _torch_config(config, _object(record_file, "torch_config", record))
    decoder, tied = _read_decoder(folder, notes)
    if model.text_corrector is not None:
        notes.append("text corrector: left out; PyTorch has none")
    arrays |= decoder
    rows += [Row(f"text_decoder.safetensors: {key}", key, value.shape, "carried") for key, value in decoder.items()]
    mapper = {key: arrays.pop(key) for key in list(arrays) if key.startswith(MAPPER)}
    order = in_torch_order(arrays, training.get("key_order") or ())

    def tensors(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {key: torch.from_numpy(np.array(value)).to(getattr(torch, dtype)) for key, value in values.items()}

    state = tensors({key: arrays[key] for key in order})
    for key, target in tied.items():
        state[key] = state[target]
        rows.append(Row(f"text_decoder.safetensors: {target}", key, tuple(state[target].shape), "tied"))
    checkpoint: dict[str, Any] = {
        "epoch": training.get("epoch", 0),
        "global_step": model.trained_steps,
        "config": torch_config,
        RECORD: fields_beside(config, torch_config, shapes),
        "model_state_dict": {key: value for key, value in state.items() if key.startswith(MODEL)},
        "scheduler_state_dict": training.get("scheduler_state_dict") or {},
        "best_loss": training.get("best_loss", math.inf),
        "training_history": training.get("training_history", {}),
        "text_encoder_state_dict": _without_prefix(state, ENCODER),
    }
    if decoder:
        checkpoint["text_decoder_state_dict"] = _without_prefix(state, PREFIX)
    if with_optimizer and resolve(folder, "optimizer.safetensors").is_file():
        checkpoint["optimizer_state_dict"], more = torch_optimiser(folder, config, order, training)
        notes += more
    if config.untrained_parts != "none":
        notes.append(f"untrained: {config.untrained_parts}")
    others = tensors(mapper)
    write_folder(
        out,
        {
            "checkpoint.pt": _saver(checkpoint),
            "mapper.pt": _saver(others),
        },
    )
    return rows, notes


def _saver(values: Mapping[str, Any]) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        import torch

        with path.open("wb") as file:  # given a path, torch does not say why it cannot write
            torch.save(values, file)

    return save


def _without_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _object(path: Path, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The object under `name` in the contents `values` of `path`; empty if there is none."""
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {name} is a {type(found).__name__}, accepted is an object")
    return found


def _torch_config(config: EnergyConfig, torch_config: Mapping[str, Any]) -> dict[str, Any]:
    """The torch configuration, with dtypes restored from text."""
    import torch

    def restore(value: Any) -> Any:
        known = isinstance(value, str) and value.startswith("torch.")
        return getattr(torch, value.removeprefix("torch."), value) if known else value

    return {key: restore(value) for key, value in config_to_torch(config, torch_config).items()}


def _read_decoder(folder: Path, notes: list[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The decoder's tensors by prefixed key; and tied keys -> the key whose tensor they share. One that was trained here is left out, and
    `notes` get why."""
    path = resolve(folder, "text_decoder.safetensors")
    if not path.is_file():
        return {}, {}
    settings = resolve(folder, "text_decoder.json")
    record = read_json(settings)
    if "prefix" in record:
        notes.append(f"text decoder: left out; it reads {record['prefix']} vectors of a surface, PyTorch's CubeToTextDecoder one")
        return {}, {}
    tied = _object(settings, "tied", record)
    tensors = {PREFIX + key: value for key, value in read_tensors(path).items()}
    lost = [f"{key} to {target}" for key, target in tied.items() if f"{PREFIX}{target}" not in tensors]
    if lost:
        raise ValueError(f"{settings}: ties {listing(lost)}, which {path.name} does not hold")
    return tensors, {PREFIX + key: PREFIX + target for key, target in tied.items()}
