"""With the kernels on, a first step needs nothing that MLX's CUDA backend would have to compile first: gathers and scatters."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from train.small import small_config, small_data

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.config import EnergyConfig
from energy_flow_mlx.data.source import EpochOrder
from energy_flow_mlx.ops import kernel
from energy_flow_mlx.train.loss import energy_flow_loss
from energy_flow_mlx.train.optimiser import make_optimiser
from energy_flow_mlx.train.step import TrainStep, micro_batches


def slow_primitives(arrays: Sequence[mx.array]) -> set[str]:
    """The gathers and scatters in the graph of arrays that are not evaluated yet."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    names = set(re.findall(r'label ?= ?"([^"]+)", shape=rectangle', graph.getvalue()))
    assert names  # else the labels have another form
    return {name for name in names if name.startswith(("Gather", "Scatter"))}


def unevaluated(*_: Any) -> Callable[..., list[mx.array]]:
    """Stands for `kernel.build`: zeros that depend on the inputs."""

    def run(**call: Any) -> list[mx.array]:
        outputs = [mx.zeros(*output) for output in zip(call["output_shapes"], call["output_dtypes"], strict=True)]
        results: list[mx.array] = mx.depends(outputs, call["inputs"])
        return results

    return run


def config(**changes: object) -> EnergyConfig:
    spawning = {"movement_based_spawn": True, "use_exploration_noise": True}
    return small_config(**{"compute_dtype": "bfloat16", "carrier_num_layers": 2, **spawning, **changes})


def test_initial_weights() -> None:
    model = EnergyFlow(config())
    assert not slow_primitives([array for _, array in tree_flatten(model.parameters())])


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"collection": "bilinear"}])
@pytest.mark.parametrize("kernels", ["on", "off"])
def test_loss_and_gradients(kernels: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernel.VARIABLE, kernels)
    monkeypatch.setattr(kernel, "backend", lambda: "metal")
    monkeypatch.setattr(kernel, "build", unevaluated)
    settings = config(**changes)
    model = EnergyFlow(settings)
    mx.eval(model.parameters())
    data = small_data(settings).train
    (batch,) = micro_batches(data, EpochOrder(len(data), settings.batch_size, seed=0), 0, 1)

    def loss() -> mx.array:
        return energy_flow_loss(model, settings, batch, key=mx.random.key(0))[0]

    for training in (True, False):
        model.train(training)
        value, gradients = nn.value_and_grad(model, loss)() if training else (loss(), {})
        slow = slow_primitives([value, *(array for _, array in tree_flatten(gradients))])
        assert slow == set() if kernels == "on" else slow  # off: the check itself is checked


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_whole_step(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping, optimiser and metrics included."""
    monkeypatch.setenv(kernel.VARIABLE, "on")
    monkeypatch.setattr(kernel, "backend", lambda: "metal")
    monkeypatch.setattr(kernel, "build", unevaluated)
    settings = config(compute_dtype=dtype)
    model, optimiser = EnergyFlow(settings), make_optimiser(settings)
    optimiser.init(model.trainable_parameters())
    mx.eval(model.parameters(), optimiser.state)
    data = small_data(settings).train
    started: list[Any] = []
    monkeypatch.setattr(mx, "async_eval", lambda *trees: started.extend(trees))
    step = TrainStep(model, optimiser, settings)
    launched = step.launch(0, micro_batches(data, EpochOrder(len(data), settings.batch_size, seed=0), 0, 2), 1e-3)
    arrays = [array for _, array in tree_flatten([*started, launched.metrics, launched.checked, launched.norms])]
    assert not slow_primitives(arrays)
