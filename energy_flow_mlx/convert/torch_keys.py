"""The mapping between PyTorch state dicts and this package's parameters, in both directions.

Most names are equal, because modules keep their layers in lists as torch does. The differences:

| torch | this package | conversion | back |
|---|---|---|---|
| `input_mapper.*`, `output_collector.*` | `mapper.*`, `collector.*` | renamed | exact |
| `neuron.coord_encoder.*` (12 outputs) | `neuron.coord_encoder.*` (3 outputs) | first 3 outputs, folded with torch's second normalisation (below) | unfolded; the 9 unused outputs become 0 |
| `carrier.gru.{weight_ih,weight_hh}_lK` | `carrier.gru.K.{Wx,Wh}` | renamed | exact |
| `carrier.gru.{bias_ih,bias_hh}_lK` | `carrier.gru.K.{b,bhn}` | summed for r and z; n keeps both | the sum goes to bias_ih, bias_hh gets 0 |
| `positional_encoding` of the text encoder | `text_encoder.positional_encoding.weight` | renamed | exact |
| `self_attn.in_proj_*` | `self_attn.{query,key,value}_proj.*` | split | stacked, exact |

Torch normalises positions p in [-1, 1] a second time, to 2 p / span - 1 with span = (W - 1, H - 1, D - 1), before its
coord_encoder. Folding replaces W (2 p / span - 1) + b by W' p + b' with W' = 2 W / span and b' = b - W 1.

The same code converts the optimiser's moments, with another `Arithmetic` for folded and summed parameters.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ..config import ModelConfig

Arrays = Mapping[str, np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]

COORDINATES = 12  # outputs of torch's coord_encoder, of which 3 are used
COORD_WEIGHT, COORD_BIAS = "neuron.coord_encoder.weight", "neuron.coord_encoder.bias"
RENAMED_MODULES = {"input_mapper.": "mapper.", "output_collector.": "collector."}
RENAMED_KEYS = {"text_encoder.positional_encoding": "text_encoder.positional_encoding.weight"}
SAME = ("neuron.", "carrier.", "text_encoder.")


class Converted(NamedTuple):
    """One target tensor: its source keys, the conversion and its value."""

    sources: tuple[str, ...]
    action: str  # as is, renamed, split, folded, summed, …
    value: np.ndarray  # in the target's shape


class Arithmetic(NamedTuple):
    """How weights, or one of Adam's moments, are converted if a parameter is not only renamed or split.

    fold(weight [3, 3], bias [3], span [3]) -> (weight, bias) of the folded coord_encoder; unfold is its inverse.
    merge(bias_ih [2 Hd], bias_hh [2 Hd]) -> the bias [2 Hd] of the gates r and z; unmerge(bias) -> (bias_ih, bias_hh).
    """

    fold: Callable[[np.ndarray, np.ndarray, np.ndarray], Pair]
    unfold: Callable[[np.ndarray, np.ndarray, np.ndarray], Pair]
    merge: Callable[[np.ndarray, np.ndarray], np.ndarray]
    unmerge: Callable[[np.ndarray], Pair]


WEIGHTS = Arithmetic(
    fold=lambda weight, bias, span: (2.0 * weight / span, bias - weight.sum(axis=1)),
    unfold=lambda weight, bias, span: (weight * span / 2.0, bias + (weight * span / 2.0).sum(axis=1)),
    merge=lambda input_bias, hidden_bias: input_bias + hidden_bias,
    unmerge=lambda bias: (bias, np.zeros_like(bias)),
)


def from_torch(state: Arrays, config: ModelConfig, arithmetic: Arithmetic = WEIGHTS) -> dict[str, Converted]:
    """Convert a torch state dict.

    Args:
        state: torch's tensors; keys start with neuron., carrier., input_mapper., output_collector. or text_encoder.
        config: the sizes of the lattice.
        arithmetic: for weights or for one of Adam's moments.

    Returns:
        Parameter name -> tensor.

    Raises:
        ValueError: a key is unknown, or a key that is converted together with another is missing; names it.
    """
    converted: dict[str, Converted] = {}
    unknown = []
    for key, value in state.items():
        if key in (COORD_WEIGHT, COORD_BIAS):
            if key == COORD_WEIGHT:
                converted.update(_fold_coordinates(state, config, arithmetic))
            else:
                _partner(state, key, COORD_WEIGHT)
        elif match := re.fullmatch(r"carrier\.gru\.(weight|bias)_(ih|hh)_l(\d+)", key):
            kind, side, layer = match.groups()
            target = f"carrier.gru.{layer}"
            if kind == "weight":
                converted[f"{target}.{'Wx' if side == 'ih' else 'Wh'}"] = Converted((key,), "renamed", value)
            elif side == "ih":
                converted.update(_merge_biases(state, key, target, arithmetic))
            else:
                _partner(state, key, key.replace("bias_hh", "bias_ih"))
        elif match := re.fullmatch(r"(text_encoder\..*\.self_attn)\.in_proj_(weight|bias)", key):
            parts = zip(("query", "key", "value"), np.split(value, 3), strict=True)
            for name, part in parts:
                converted[f"{match[1]}.{name}_proj.{match[2]}"] = Converted((key,), "split", part)
        elif target_name := _renamed(key):
            converted[target_name] = Converted((key,), "as is" if target_name == key else "renamed", value)
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"state: unknown keys {', '.join(unknown)}")
    return converted


def to_torch(parameters: Arrays, config: ModelConfig, arithmetic: Arithmetic = WEIGHTS) -> dict[str, Converted]:
    """Convert parameters by name to a torch state dict (key -> tensor): the inverse of `from_torch`.

    Raises:
        ValueError: a name is unknown, or a parameter that is converted together with another is missing; names it.
    """
    converted: dict[str, Converted] = {}
    unknown = []
    for name, value in parameters.items():
        if name in (COORD_WEIGHT, COORD_BIAS):
            if name == COORD_WEIGHT:
                converted.update(_unfold_coordinates(parameters, config, arithmetic))
            else:
                _partner(parameters, name, COORD_WEIGHT)
        elif match := re.fullmatch(r"carrier\.gru\.(\d+)\.(Wx|Wh|b|bhn)", name):
            layer, kind = match.groups()
            if kind in ("Wx", "Wh"):
                side = "ih" if kind == "Wx" else "hh"
                converted[f"carrier.gru.weight_{side}_l{layer}"] = Converted((name,), "renamed", value)
            elif kind == "b":
                converted.update(_divide_biases(parameters, name, layer, arithmetic))
            else:
                _partner(parameters, name, name.removesuffix("hn"))
        elif match := re.fullmatch(r"(text_encoder\..*\.self_attn)\.(query|key|value)_proj\.(weight|bias)", name):
            names = tuple(f"{match[1]}.{part}_proj.{match[3]}" for part in ("query", "key", "value"))
            if match[2] == "query":
                stacked = np.concatenate([_partner(parameters, name, part) for part in names])
                converted[f"{match[1]}.in_proj_{match[3]}"] = Converted(names, "stacked", stacked)
            else:
                _partner(parameters, name, names[0])
        elif key := _renamed_back(name):
            converted[key] = Converted((name,), "as is" if key == name else "renamed", value)
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"parameters: unknown names {', '.join(unknown)}")
    return converted


def _partner(state: Arrays, key: str, other: str) -> np.ndarray:
    if other not in state:
        raise ValueError(f"state: {key} needs {other}, which is missing")
    return state[other]


def _renamed(key: str) -> str | None:
    if key in RENAMED_KEYS:
        return RENAMED_KEYS[key]
    for source, target in RENAMED_MODULES.items():
        if key.startswith(source):
            return target + key.removeprefix(source)
    return key if key.startswith(SAME) else None


def _renamed_back(name: str) -> str | None:
    for key, target in RENAMED_KEYS.items():
        if name == target:
            return key
    for source, target in RENAMED_MODULES.items():
        if name.startswith(target):
            return source + name.removeprefix(target)
    return name if name.startswith(SAME) else None


def _span(config: ModelConfig) -> np.ndarray:
    """The divisor [3] of positions in torch's second normalisation."""
    return np.array([config.lattice_width - 1, config.lattice_height - 1, config.lattice_depth - 1], dtype=np.float64)


def _fold_coordinates(state: Arrays, config: ModelConfig, arithmetic: Arithmetic) -> dict[str, Converted]:
    both = (state[COORD_WEIGHT], _partner(state, COORD_WEIGHT, COORD_BIAS))
    weight, bias = (value[:3].astype(np.float64) for value in both)
    weight, bias = arithmetic.fold(weight, bias, _span(config))
    return {
        COORD_WEIGHT: Converted((COORD_WEIGHT,), "folded", weight.astype(np.float32)),
        COORD_BIAS: Converted((COORD_WEIGHT, COORD_BIAS), "folded", bias.astype(np.float32)),
    }


def _unfold_coordinates(parameters: Arrays, config: ModelConfig, arithmetic: Arithmetic) -> dict[str, Converted]:
    both = (parameters[COORD_WEIGHT], _partner(parameters, COORD_WEIGHT, COORD_BIAS))
    weight, bias = (value.astype(np.float64) for value in both)
    weight, bias = arithmetic.unfold(weight, bias, _span(config))
    full_weight = np.zeros((COORDINATES, 3), dtype=np.float32)
    full_bias = np.zeros(COORDINATES, dtype=np.float32)
    full_weight[:3], full_bias[:3] = weight, bias
    return {
        COORD_WEIGHT: Converted((COORD_WEIGHT,), "unfolded", full_weight),
        COORD_BIAS: Converted((COORD_WEIGHT, COORD_BIAS), "unfolded", full_bias),
    }


def _merge_biases(state: Arrays, key: str, target: str, arithmetic: Arithmetic) -> dict[str, Converted]:
    other = key.replace("bias_ih", "bias_hh")
    input_bias, hidden_bias = state[key], _partner(state, key, other)
    gates = 2 * (input_bias.shape[0] // 3)  # r and z
    merged = input_bias.copy()
    merged[:gates] = arithmetic.merge(input_bias[:gates], hidden_bias[:gates])
    return {
        f"{target}.b": Converted((key, other), "summed", merged),
        f"{target}.bhn": Converted((other,), "split", hidden_bias[gates:]),
    }


def _divide_biases(parameters: Arrays, name: str, layer: str, arithmetic: Arithmetic) -> dict[str, Converted]:
    bias, new_gate = parameters[name], _partner(parameters, name, f"{name}hn")
    gates = 2 * (bias.shape[0] // 3)
    input_side, hidden_side = arithmetic.unmerge(bias[:gates])
    return {
        f"carrier.gru.bias_ih_l{layer}": Converted((name,), "divided", np.concatenate([input_side, bias[gates:]])),
        f"carrier.gru.bias_hh_l{layer}": Converted(
            (name, f"{name}hn"), "divided", np.concatenate([hidden_side, new_gate])
        ),
    }
