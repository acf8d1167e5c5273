"""A model folder becomes a torch checkpoint, checkpoint.pt and mapper.pt."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..files import resolve, write_folder
from ..models.energy_flow import EnergyFlow
from ..torch_keys import to_torch
from ..training.optimiser import named_arrays
from .decoder import PREFIX
from .moments import Moments, from_optimiser_state, moments_to_torch
from .settings import config_to_torch
from .source import read_json, require_torch
from .summary import Row, by_module, rows_of
from .tensors import check_finite, read_header, read_tensors
from .to_mlx import BETAS, EPS, check_empty, torch_shapes

# The order of torch's parameters, which a saved optimiser numbers. Numbers in a key sort by value.
_ORDER = (
    r"neuron\.layers\.", r"neuron\.", r"carrier\.gru\.", r"carrier\.position_memory", r"carrier\.history_fusion",
    r"carrier\.energy_projection", r"carrier\.displacement_projection", r"text_encoder\.positional_encoding",
    r"text_encoder\.token_embedding", r"text_encoder\.transformer_encoder", r"text_encoder\.surface_projection", r"text_decoder\.",
)  # fmt: skip
_WITHIN = (
    "weight_ih",
    "weight_hh",
    "bias_ih",
    "bias_hh",
    "in_proj",
    "out_proj",
    "linear1",
    "linear2",
    "norm1",
    "norm2",
)


def parameter_order(keys: Iterable[str]) -> list[str]:
    """Keys of the checkpoint's modules in the order of torch's `parameters()`; the decoder's stay as they come."""

    def rank(item: tuple[int, str]) -> tuple[Any, ...]:
        position, key = item
        module = next(index for index, pattern in enumerate(_ORDER) if re.match(pattern, key))
        if key.startswith(PREFIX):
            return (module, position)
        layers = [int(number) for number in re.findall(r"(?:\.|_l)(\d+)(?=\.|$)", key)]
        within = next((index for index, part in enumerate(_WITHIN) if part in key), len(_WITHIN))
        return (module, layers, within, not key.endswith("weight"))

    return [key for _, key in sorted(enumerate(keys), key=rank)]


def convert_to_torch(folder: Path, out: Path, dtype: str, with_optimizer: bool) -> tuple[list[Row], list[str]]:
    """Write `checkpoint.pt`, laid out as the PyTorch trainer's, and `mapper.pt` into `out`; returns table rows and notes.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, holds NaN or does not fit; names it.
    """
    check_empty(out)
    require_torch(folder)
    import torch

    read_header(resolve(folder, "model.safetensors"))  # a damaged file is told apart before MLX reads it
    model = EnergyFlow.from_pretrained(folder)
    parameters = {name: np.array(array.astype(mx.float32)) for name, array in named_arrays(model.parameters()).items()}
    check_finite(str(folder), parameters)
    record_file = resolve(folder, "conversion.json")
    record = read_json(record_file) if record_file.is_file() else {}
    training = record.get("training", {})
    converted = to_torch(parameters, model.config)
    rows = rows_of(converted)
    notes = [
        "not invertible: neuron.coord_encoder's outputs 3 to 11, which nothing uses, are 0",
        "not invertible: the summed biases of the gates r and z are all in bias_ih, bias_hh holds 0 there",
    ]
    decoder, t5 = _read_decoder(folder)
    rows += [
        Row(f"text_decoder.safetensors: {key}", PREFIX + key, value.shape, "carried") for key, value in decoder.items()
    ]

    def tensors(prefix: str | tuple[str, ...], cut: str = "") -> dict[str, Any]:
        return {
            key.removeprefix(cut): torch.from_numpy(np.array(item.value)).to(getattr(torch, dtype))
            for key, item in converted.items()
            if key.startswith(prefix)
        }

    model_state = _ordered(tensors(("neuron.", "carrier.")))
    encoder_state = {
        key.removeprefix("text_encoder."): value for key, value in _ordered(tensors("text_encoder.")).items()
    }
    decoder_state = {key: torch.from_numpy(value).to(getattr(torch, dtype)) for key, value in decoder.items()}
    for key, target in t5.get("tied", {}).items():
        decoder_state[key] = decoder_state[target]
        rows.append(
            Row(f"text_decoder.safetensors: {target}", PREFIX + key, tuple(decoder_state[target].shape), "tied")
        )
    checkpoint: dict[str, Any] = {
        "epoch": training.get("epoch", 0),
        "global_step": model.trained_steps,
        "config": {
            key: _torch_value(value)
            for key, value in config_to_torch(model.config, record.get("torch_config", {})).items()
        },
        "model_state_dict": model_state,
        "scheduler_state_dict": training.get("scheduler_state_dict", {}),
        "best_loss": training.get("best_loss", math.inf),
        "training_history": training.get("training_history", {}),
        "text_encoder_state_dict": encoder_state,
    }
    if decoder_state:
        checkpoint["text_decoder_state_dict"] = decoder_state
    optimizer_file = resolve(folder, "optimizer.safetensors")
    if with_optimizer and optimizer_file.is_file():
        state, more = _optimizer(folder, model, decoder, training)
        checkpoint["optimizer_state_dict"] = state
        notes += more
    mapper = tensors(("input_mapper.", "output_collector."))
    if model.config.untrained_parts != "none":
        notes.append(f"untrained: {model.config.untrained_parts}")
    write_folder(
        out,
        {
            "checkpoint.pt": lambda path: torch.save(checkpoint, path),
            "mapper.pt": lambda path: torch.save(mapper, path),
        },
    )
    return rows, notes


def _ordered(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tensors[key] for key in parameter_order(tensors)}


def _torch_value(value: Any) -> Any:
    """Dtypes came as text."""
    import torch

    if isinstance(value, str) and value.startswith("torch."):
        return getattr(torch, value.removeprefix("torch."), value)
    return value


def _read_decoder(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors = resolve(folder, "text_decoder.safetensors")
    if not tensors.is_file():
        return {}, {}
    return read_tensors(tensors), read_json(resolve(folder, "text_decoder.json"))


def _optimizer(
    folder: Path, model: EnergyFlow, decoder: Mapping[str, np.ndarray], training: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The torch optimiser's state dict over the checkpoint's modules."""
    import torch

    flat = read_tensors(resolve(folder, "optimizer.safetensors"))
    # What no gradient has reached has no state in torch.
    ours = from_optimiser_state(flat)
    untouched = {name for name, value in ours.second.items() if not value.any()}
    untouched -= _needed_partners(ours, untouched)
    first, second = (
        {name: value for name, value in values.items() if name not in untouched} for values in (ours.first, ours.second)
    )
    moments = moments_to_torch(Moments(first, second, ours.step), model.config)
    beside = resolve(folder, "text_decoder_optimizer.safetensors")
    if beside.is_file():
        for name, value in read_tensors(beside).items():
            key, _, kind = name.rpartition(".")
            (moments.first if kind == "exp_avg" else moments.second)[PREFIX + key] = value
    keys = [key for key in torch_shapes(model.config) if key.startswith(("neuron.", "carrier.", "text_encoder."))]
    order = training.get("parameter_order") or parameter_order([*keys, *(PREFIX + key for key in decoder)])
    left = [key for key in moments.first if key not in order]
    notes = [f"optimiser: left out, torch's optimiser lacks them: moments of {by_module(left)}"] if left else []
    state = {
        index: {
            "step": torch.tensor(float(ours.step)),
            "exp_avg": torch.from_numpy(np.array(moments.first[key])),
            "exp_avg_sq": torch.from_numpy(np.array(moments.second[key])),
        }
        for index, key in enumerate(order)
        if key in moments.first
    }
    config = model.config
    group = dict((training.get("param_groups") or [_GROUP])[0])
    rate = float(flat["learning_rate"].reshape(-1)[0]) if "learning_rate" in flat else config.learning_rate
    group |= {
        "lr": rate,
        "betas": tuple(BETAS),
        "eps": EPS,
        "weight_decay": config.weight_decay,
        "params": list(range(len(order))),
    }
    return {"state": state, "param_groups": [group]}, notes


_GROUP: dict[str, Any] = {
    "amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None,
    "decoupled_weight_decay": True,
}  # fmt: skip


def _needed_partners(moments: Moments, untouched: set[str]) -> set[str]:
    """Untouched parameters that one torch tensor shares with a touched one (b and bhn, query and key, weight and bias)."""
    touched = {_family(name) for name in moments.second if name not in untouched}
    return {name for name in untouched if _family(name) in touched}


def _family(name: str) -> str:
    name = re.sub(r"(carrier\.gru\.\d+)\.(b|bhn)$", r"\1.bias", name)
    name = re.sub(r"\.(query|key|value)_proj\.", ".in_proj.", name)
    return re.sub(r"coord_encoder\.(weight|bias)$", "coord_encoder", name)
