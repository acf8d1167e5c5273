"""A model whose ops compute by NumPy, as on a Linux CPU: as the plain graph, the same bits each time, and no more memory than needed."""

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from models.small import lively_model, random_surface

from energy_flow_mlx.ops import host
from energy_flow_mlx.ops.checkpoint import recomputed
from energy_flow_mlx.ops.failures import VARIABLE

WIDE = {"carrier_hidden_size": 64, "carrier_num_layers": 2, "lattice_depth": 24}


@pytest.fixture(autouse=True)
def _by_numpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(host.sys, "platform", "linux")
    monkeypatch.setattr(host, "LEAST", 0)
    monkeypatch.delenv(VARIABLE, raising=False)
    with mx.stream(mx.cpu):
        yield


def gradients(batch: int = 5, **changes: object) -> dict[str, mx.array]:
    """Of a loss on the surface that the flows leave, with respect to all weights of neuron and carrier, and the loss."""
    model = lively_model(**changes)
    model.train()
    surface = random_surface(batch, model.config.surface_dim)

    def loss(model: nn.Module) -> mx.array:
        return mx.mean(mx.square(model.processor(surface, key=mx.random.key(0), training_step=0).surface))

    value, found = nn.value_and_grad(model, loss)(model)
    mx.eval(value, found)
    flow = [pair for pair in tree_flatten(found) if pair[0].startswith(("neuron.", "carrier."))]
    return {"loss": value, **dict(flow)}


@pytest.mark.parametrize("changes", [
    {}, {"gradient_checkpointing": True}, {"movement_based_spawn": True, "spawn_movement_threshold_ratio": 0.05}, {"enable_gru_nan_protection": False},
], ids=str)  # fmt: skip
def test_loss_and_gradients_equal_those_of_the_plain_graph(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = gradients(**changes)
    monkeypatch.setenv(VARIABLE, "off")
    for name, wanted in gradients(**changes).items():
        np.testing.assert_allclose(np.array(ours[name]), np.array(wanted), rtol=1e-4, atol=1e-5 * float(mx.max(mx.abs(wanted))) + 1e-9, err_msg=name)


def test_checkpointing_by_numpy_has_the_bits_of_a_life_without_it() -> None:
    kept, recomputed = gradients(), gradients(gradient_checkpointing=True)
    assert kept["loss"].item() == recomputed["loss"].item()
    again = gradients()
    assert {name: np.array(x).tobytes() for name, x in again.items()} == {name: np.array(x).tobytes() for name, x in kept.items()}


def test_evaluation_equals_the_plain_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = lively_model(), mx.random.normal((5, 10))
    ours = np.array(model(x).embedding)
    monkeypatch.setenv(VARIABLE, "off")
    np.testing.assert_allclose(ours, np.array(model(x).embedding), atol=1e-5)


def peak(**changes: object) -> int:
    mx.clear_cache()
    mx.reset_peak_memory()
    gradients(batch=32, **WIDE, **changes)
    return int(mx.get_peak_memory())


def test_a_recomputed_life_keeps_few_steps() -> None:
    assert peak(gradient_checkpointing=True) < 0.5 * peak()


def test_recomputation_by_numpy_is_differentiable_once() -> None:
    def slope(function: Callable[..., Any], x: mx.array) -> mx.array:
        return mx.sum(mx.grad(lambda x: mx.sum(function(x, x)[0]))(x))

    with pytest.raises(NotImplementedError, match="ENERGY_FLOW_KERNELS=off"):
        mx.grad(lambda x: slope(recomputed(lambda x, y: [x * y]), x))(mx.ones((4,)))
