"""Converting the state of MLX's AdamW to torch's state dict, which numbers parameters in the order of the modules."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import EnergyConfig
from ..files import resolve
from ..models.energy_flow import BESIDE
from ..tensors import read_metadata, read_tensors
from .decoder import PREFIX
from .moments import BETAS, EPS, Moments, from_optimiser_state, moments_to_torch
from .summary import by_module

# Patterns in the order of torch's `parameters()`. Numbers in a key sort by value.
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

_GROUP: dict[str, Any] = {
    "amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None,
    "decoupled_weight_decay": True,
}  # fmt: skip


def in_torch_order(keys: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """Sort a checkpoint's keys in the order of torch's `parameters()`; the decoder's keep their order.

    Args:
        keys: the keys to sort.
        known: the key order of the checkpoint that the model was converted from; its keys come first, in that order.
    """
    places = {key: place for place, key in enumerate(known)}

    def rank(item: tuple[int, str]) -> tuple[Any, ...]:
        position, key = item
        if key in places:
            return (-1, places[key])
        module = next(index for index, pattern in enumerate(_ORDER) if re.match(pattern, key))
        if key.startswith(PREFIX):
            return (module, position)
        layers = [int(number) for number in re.findall(r"(?:\.|_l)(\d+)(?=\.|$)", key)]
        within = next((index for index, part in enumerate(_WITHIN) if part in key), len(_WITHIN))
        return (module, layers, within, not key.endswith("weight"))

    return [key for _, key in sorted(enumerate(keys), key=rank)]


def torch_optimiser(
    folder: Path, config: EnergyConfig, order: Sequence[str], training: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Convert the optimiser files of a model folder.

    Args:
        folder: the model folder.
        config: its configuration.
        order: the keys of the checkpoint's tensors, in torch's order.
        training: the training record of the checkpoint that the model was converted from; empty if there is none.

    Returns:
        The state dict, with moments in their parameter's shape, and notes on moments that are left out.
    """
    import torch

    flat = read_tensors(resolve(folder, "optimizer.safetensors"))
    ours = from_optimiser_state(flat)
    moments = moments_to_torch(_touched(ours), config)
    steps = dict.fromkeys(moments.first, ours.step)
    decoder_file = resolve(folder, "text_decoder_optimizer.safetensors")
    if decoder_file.is_file():
        theirs = int(read_metadata(decoder_file)["step"])
        for name, value in read_tensors(decoder_file).items():
            key, _, kind = (PREFIX + name).rpartition(".")
            (moments.first if kind == "exp_avg" else moments.second)[key] = value
            steps[key] = theirs
    groups = training.get("param_groups") or []
    numbered = order[: sum(len(group["params"]) for group in groups)] if groups else order
    dropped = [key for key in moments.first if key not in numbered]
    notes = [f"optimiser: moments dropped, torch's optimiser does not have: {by_module(dropped)}"] if dropped else []
    state = {
        index: {
            "step": torch.tensor(float(steps[key])),
            "exp_avg": torch.from_numpy(np.array(moments.first[key])),
            "exp_avg_sq": torch.from_numpy(np.array(moments.second[key])),
        }
        for index, key in enumerate(numbered)
        if key in moments.first
    }
    group = {**_GROUP, **(groups[0] if groups else {}), "betas": tuple(BETAS), "eps": EPS}
    rate = flat["learning_rate"].reshape(-1)[0]
    if np.float32(group.get("lr", -1.0)) != rate:  # otherwise keep torch's float64 value
        group["lr"] = float(rate)
    group |= {"weight_decay": config.weight_decay, "params": list(range(len(numbered)))}
    return {"state": state, "param_groups": [group]}, notes


def _touched(moments: Moments) -> Moments:
    """Drop parameters that never had a gradient, for which torch keeps no state.

    A parameter stays if another that belongs to the same torch tensor had one (b and bhn; query, key and value; weight
    and bias of coord_encoder). Those of a text decoder that was trained here go with it.
    """
    families = {_family(name) for name, value in moments.second.items() if value.any() and not name.startswith(BESIDE)}
    first, second = (
        {name: value for name, value in values.items() if _family(name) in families}
        for values in (moments.first, moments.second)
    )
    return Moments(first, second, moments.step)


def _family(name: str) -> str:
    name = re.sub(r"(carrier\.gru\.\d+)\.(b|bhn)$", r"\1.bias", name)
    name = re.sub(r"\.(query|key|value)_proj\.", ".in_proj.", name)
    return re.sub(r"coord_encoder\.(weight|bias)$", "coord_encoder", name)
