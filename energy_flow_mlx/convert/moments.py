"""Converting Adam's moments along with the parameters.

A first moment is an average of gradients, so it transforms exactly by the chain rule. A second moment is an average of
squared gradients: it transforms exactly if a parameter is renamed, split or stacked, and is estimated if it is folded.

| parameters | first moment | second moment | the next update |
|---|---|---|---|
| renamed, split, stacked, `bhn`, `b` of the gate n | exact | exact | equals torch's |
| `b` of the gates r and z | exact | exact | half of torch's, which updates two biases that are one here |
| `neuron.coord_encoder.bias` | exact | exact | Adam's for the folded parameters; torch updates W and b before folding |
| `neuron.coord_encoder.weight` | exact | v_W + v_b, scaled, with the unknown correlation of the two taken as 0 | at most √2 times Adam's for the folded parameters |

Adam is not invariant under reparametrisation, so the last three cannot equal torch's update. The first update after the
conversion differs by at most a few learning rates per entry; afterwards Adam proceeds as usual.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..config import ModelConfig
from .torch_keys import Arithmetic, Arrays, from_torch, to_torch

BETAS, EPS = [0.9, 0.999], 1e-8  # of this package's AdamW, and torch's defaults

# With W' = 2 W / span and b' = b - W 1:  dL/dW' = (dL/dW + dL/db 1ᵀ) span / 2,  dL/db' = dL/db.
FIRST = Arithmetic(
    fold=lambda weight, bias, span: ((weight + bias[:, None]) * span / 2.0, bias),
    unfold=lambda weight, bias, span: (2.0 * weight / span - bias[:, None], bias),
    # Torch's two biases are added, so both have the gradient of the sum.
    merge=lambda input_bias, hidden_bias: (input_bias + hidden_bias) / 2,
    unmerge=lambda bias: (bias, bias),
)
SECOND = Arithmetic(
    fold=lambda weight, bias, span: ((weight + bias[:, None]) * (span / 2.0) ** 2, bias),
    unfold=lambda weight, bias, span: ((2.0 / span) ** 2 * weight + bias[:, None], bias),
    merge=lambda input_bias, hidden_bias: (input_bias + hidden_bias) / 2,
    unmerge=lambda bias: (bias, bias),
)


class Moments(NamedTuple):
    """Adam's state: first and second moments by parameter name, in the parameter's shape, and the number of steps."""

    first: dict[str, np.ndarray]
    second: dict[str, np.ndarray]
    step: int


def read_moments(tensors: Mapping[str, np.ndarray]) -> Moments | None:
    """Read moments from torch's entries; None if there are none.

    Args:
        tensors: `<key>.exp_avg` and `<key>.exp_avg_sq` in the parameter's shape, `<key>.step` one number.

    Raises:
        ValueError: the parameters' step counts differ, while MLX's AdamW has one for all, or a parameter lacks an
            entry.
    """
    kinds = ("exp_avg", "exp_avg_sq", "step")
    by_kind: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in kinds}
    for name, value in tensors.items():
        key, _, kind = name.rpartition(".")
        if kind not in kinds:
            raise ValueError(f"optimizer: unknown entry {name}; accepted end in {', '.join(kinds)}")
        by_kind[kind][key] = value
    first, second, steps = (by_kind[kind] for kind in kinds)
    if not first.keys() == second.keys() == steps.keys():
        lone = sorted((first.keys() ^ second.keys()) | (first.keys() ^ steps.keys()))
        raise ValueError(f"optimizer: {', '.join(lone)} must each have {', '.join(kinds)}")
    if not first:
        return None
    counts = {key: int(value.reshape(-1)[0]) for key, value in steps.items()}
    if len(set(counts.values())) > 1:
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise ValueError(
            f"optimizer: the parameters have different step counts ({least} {counts[least]}, {most} {counts[most]}), but MLX's "
            "AdamW has one for all; --without-optimizer converts without the moments"
        )
    return Moments(first, second, next(iter(counts.values())))


def moments_from_torch(moments: Moments, config: ModelConfig) -> Moments:
    """Convert moments by torch key to moments by this package's parameter names."""

    def convert(values: Arrays, arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        return {name: item.value for name, item in from_torch(values, config, arithmetic).items()}

    return Moments(convert(moments.first, FIRST), convert(moments.second, SECOND), moments.step)


def moments_to_torch(moments: Moments, config: ModelConfig) -> Moments:
    """Convert moments by this package's parameter names to moments by torch key."""

    def convert(values: Arrays, arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        return {key: item.value for key, item in to_torch(values, config, arithmetic).items()}

    return Moments(convert(moments.first, FIRST), convert(moments.second, SECOND), moments.step)


def to_optimiser_state(moments: Moments, trained: Mapping[str, tuple[int, ...]], rate: float) -> dict[str, np.ndarray]:
    """The flat state of `mlx.optimizers.AdamW`.

    Args:
        moments: by parameter name.
        trained: name -> shape of the trained parameters; those without moments get zeros.
        rate: the learning rate.

    Returns:
        `step` and `learning_rate`, scalars, and `<name>.m` and `<name>.v` of the parameter's shape.
    """
    state: dict[str, np.ndarray] = {
        "step": np.array(moments.step, dtype=np.uint64),
        "learning_rate": np.array(rate, dtype=np.float32),
    }
    for name, shape in trained.items():
        for letter, values in (("m", moments.first), ("v", moments.second)):
            state[f"{name}.{letter}"] = values[name] if name in values else np.zeros(shape, dtype=np.float32)
    return state


def from_optimiser_state(state: Mapping[str, np.ndarray]) -> Moments:
    """The moments in a flat state: the inverse of `to_optimiser_state`. Raises ValueError if an entry is missing."""
    missing = [name for name in ("step", "learning_rate") if name not in state]
    if missing:
        raise ValueError(f"optimizer.safetensors: has no {' and no '.join(missing)}")
    first = {name.removesuffix(".m"): value for name, value in state.items() if name.endswith(".m")}
    second = {name.removesuffix(".v"): value for name, value in state.items() if name.endswith(".v")}
    if first.keys() != second.keys():
        raise ValueError(
            f"optimizer.safetensors: {', '.join(sorted(first.keys() ^ second.keys()))} must each have m and v"
        )
    return Moments(first, second, int(state["step"].reshape(-1)[0]))
