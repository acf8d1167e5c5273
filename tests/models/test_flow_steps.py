"""The flows' life as one function: outputs and gradients are those of the plain graph; spawning, noise and recomputing included."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from models.small import lively_model, random_surface
from ops.kernel_parity import backends, kernels_on

from energy_flow_mlx import EnergyFlow

SPAWN: dict = {
    "movement_based_spawn": True,
    "spawn_movement_threshold_ratio": 0.12,
    "max_spawn_per_step": 2,
    "use_exploration_noise": True,
}


def outcome(model: EnergyFlow) -> dict[str, np.ndarray]:
    """Surface, counts, and the gradients of a loss over the surface, of neuron, carrier and the surface that starts the flows."""
    model.train()
    start = random_surface(2, 12)

    def loss(part: nn.Module, start: mx.array) -> tuple[mx.array, object]:
        result = model.processor(start, key=mx.random.key(1), training_step=0)
        return mx.sum(result.surface * mx.arange(24).reshape(2, 12)), result

    both = nn.Module()
    both.neuron, both.carrier = model.neuron, model.carrier
    (_, result), gradients = nn.value_and_grad(both, loss)(both, start)
    of_start = mx.grad(lambda x: loss(both, x)[0])(start)
    found = {name: np.array(value) for name, value in result._asdict().items()}
    found |= {name: np.array(value) for name, value in tree_flatten(gradients)}
    return found | {"start": np.array(of_start)}


@backends
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"boundary_reflection_enabled": False, "enable_displacement_filtering": True, "min_displacement_threshold": 0.05},
        SPAWN,
        {**SPAWN, "gradient_checkpointing": True, "checkpoint_steps": 2},
    ],
    ids=["plain", "filter", "spawn", "recomputed"],
)
def test_the_whole_life_is_the_plain_graphs(where: str, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "off")
    with mx.stream(mx.cpu):
        wanted = outcome(lively_model(**changes))
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "on")
    with kernels_on(where):
        actual = outcome(lively_model(**changes))
    assert actual.keys() == wanted.keys()
    assert not changes.get("movement_based_spawn") or wanted["spawned"] > 0
    for name, value in wanted.items():
        scale = max(np.abs(value).max(initial=0), 1e-6)
        assert np.abs(actual[name] - value).max() <= 1e-4 * scale, name
