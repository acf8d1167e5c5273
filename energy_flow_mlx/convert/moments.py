"""Adam's moments under the key map.

A first moment is a mean of gradients, so it follows the gradients' chain rule exactly, everywhere. A second moment is a mean
of squared gradients: it follows where a parameter is renamed, split or stacked, and is estimated where it is folded.

| parameters | first moment | second moment | the next step |
|---|---|---|---|
| renamed, split, stacked, `bhn`, `b` of the gate n | exact | exact | equals torch's |
| `b` of the gates r and z | exact | exact | half of torch's: torch moves both of its two biases, here one is moved |
| `neuron.coord_encoder.bias` | exact | exact | as Adam's for this parametrisation; torch moves W and b, whose images mix |
| `neuron.coord_encoder.weight` | exact | v_W + v_b, scaled: the unknown correlation of the two is taken as 0 | at most √2 times Adam's for this parametrisation |

Adam depends on the parametrisation, so the last three cannot equal torch's step; per entry they differ from its image by no
more than a few learning rates, once, and each goes on as Adam does.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..config import ModelConfig
from .torch_keys import Arithmetic, Arrays, from_torch, to_torch

BETAS, EPS = [0.9, 0.999], 1e-8  # of the optimiser here and of torch's defaults

# With W' = 2 W / span and b' = b - W 1:  dL/dW' = (dL/dW + dL/db 1ᵀ) span / 2,  dL/db' = dL/db.
FIRST = Arithmetic(
    fold=lambda weight, bias, span: ((weight + bias[:, None]) * span / 2.0, bias),
    unfold=lambda weight, bias, span: (2.0 * weight / span - bias[:, None], bias),
    # Torch's two biases enter as a sum, so both have the gradient of the sum.
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
    """Adam's state: first and second moments by parameter name, and the number of steps they have seen."""

    first: dict[str, np.ndarray]
    second: dict[str, np.ndarray]
    step: int


def read_moments(tensors: Mapping[str, np.ndarray]) -> Moments | None:
    """Moments from `<key>.exp_avg`, `<key>.exp_avg_sq` and `<key>.step`, or None if there are none.

    Raises:
        ValueError: the parameters have seen different numbers of steps, which one counter here cannot hold, or an entry has
            no partner.
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
            f"optimizer: the parameters have seen different numbers of steps ({least} {counts[least]}, {most} {counts[most]}); "
            "MLX's AdamW has one counter; --without-optimizer leaves the moments out"
        )
    return Moments(first, second, next(iter(counts.values())))


def moments_from_torch(moments: Moments, config: ModelConfig) -> Moments:
    """Moments by torch key -> by parameter name here."""

    def convert(values: Arrays, arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        return {name: item.value for name, item in from_torch(values, config, arithmetic).items()}

    return Moments(convert(moments.first, FIRST), convert(moments.second, SECOND), moments.step)


def moments_to_torch(moments: Moments, config: ModelConfig) -> Moments:
    """Moments by parameter name here -> by torch key."""

    def convert(values: Arrays, arithmetic: Arithmetic) -> dict[str, np.ndarray]:
        return {key: item.value for key, item in to_torch(values, config, arithmetic).items()}

    return Moments(convert(moments.first, FIRST), convert(moments.second, SECOND), moments.step)


def to_optimiser_state(moments: Moments, trained: Mapping[str, tuple[int, ...]], rate: float) -> dict[str, np.ndarray]:
    """The flat state of `mlx.optimizers.AdamW`; zeros for trained parameters (name -> shape) that have no moments yet."""
    state: dict[str, np.ndarray] = {
        "step": np.array(moments.step, dtype=np.uint64),
        "learning_rate": np.array(rate, dtype=np.float32),
    }
    for name, shape in trained.items():
        for letter, values in (("m", moments.first), ("v", moments.second)):
            state[f"{name}.{letter}"] = values[name] if name in values else np.zeros(shape, dtype=np.float32)
    return state


def from_optimiser_state(state: Mapping[str, np.ndarray]) -> Moments:
    """The inverse of `to_optimiser_state`."""
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
