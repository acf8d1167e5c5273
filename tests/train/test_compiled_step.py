"""The compiled step does what the eager one does, and is traced once a shape."""

import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from train.small import small_config, small_data, small_model

from energy_flow_mlx.data.source import EpochOrder
from energy_flow_mlx.ops import compilation
from energy_flow_mlx.ops.compilation import compiled, compiles, unfused
from energy_flow_mlx.train import step as training_step
from energy_flow_mlx.train.loss import number
from energy_flow_mlx.train.optimiser import make_optimiser, named_arrays
from energy_flow_mlx.train.step import TrainStep, micro_batches


def run(
    monkeypatch: pytest.MonkeyPatch, steps: int, **changes: object
) -> tuple[list[float], dict[str, np.ndarray], int]:
    """Losses, weights afterwards, and how often the loss was traced or run by Python."""
    config = small_config(**changes)
    model, optimiser, data = small_model(config), make_optimiser(config), small_data(config).train
    optimiser.init(model.trainable_parameters())
    calls = 0
    original = training_step.energy_flow_loss

    def counted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training_step, "energy_flow_loss", counted)
        step = TrainStep(model, optimiser, config)
        order = EpochOrder(len(data), config.batch_size, config.seed)
        losses = []
        for index in range(steps):
            batches = micro_batches(data, order, index, config.gradient_accumulation_steps)
            losses.append(number(step(index, batches, 1e-3).loss))
    return losses, {name: np.array(value) for name, value in named_arrays(model.parameters()).items()}, calls


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 2, "displacement_scale_min": 0.1, "displacement_warmup_steps": 0,
         "displacement_scale_update_interval": 1},
        {"compute_dtype": "float16"},
    ],
    ids=["plain", "accumulated and scheduled", "float16"],
)  # fmt: skip
def test_compiled_equals_eager(monkeypatch: pytest.MonkeyPatch, changes: dict) -> None:
    """Over more than an epoch of 40 pairs in batches of 12, whose ragged tail is dropped."""
    changes = {**changes, "batch_size": 12}
    eager, weights, calls = run(monkeypatch, 5, compile_step="off", **changes)
    compiled, other, traces = run(monkeypatch, 5, compile_step="on", **changes)
    count = int(changes.get("gradient_accumulation_steps", 1))
    assert calls == 5 * count
    assert traces == min(count, 2)  # the first micro-batch has no sums before it
    half = changes.get("compute_dtype") is not None
    np.testing.assert_allclose(compiled, eager, rtol=2e-3 if half else 1e-5)
    for name, value in weights.items():
        if not name.endswith("key_proj.bias"):  # whose true gradient is 0: Adam scales up what rounding leaves
            np.testing.assert_allclose(
                other[name], value, atol=5e-4 if half else 1e-5, err_msg=name
            )  # of moves of 5e-3


@pytest.mark.parametrize("compile_step", ["off", "on"])
def test_the_trial_run_that_names_kernels_changes_nothing(monkeypatch: pytest.MonkeyPatch, compile_step: str) -> None:
    changes = {"compile_step": compile_step, "use_exploration_noise": True, "gradient_accumulation_steps": 2}
    losses, weights, calls = run(monkeypatch, 3, **changes)

    monkeypatch.setattr(compilation, "plans_kernels", lambda: True)  # as on a CUDA GPU
    tried, others, tried_calls = run(monkeypatch, 3, **changes)
    assert tried_calls == calls + 1
    assert tried == losses
    for name, value in weights.items():
        np.testing.assert_array_equal(others[name], value, err_msg=name)


def test_compiled_by_itself_on_a_gpu() -> None:
    on_gpu = mx.default_device().type == mx.gpu
    assert compiles(small_config()) == on_gpu
    assert compiles(small_config(compile_step="on"))
    assert not compiles(small_config(compile_step="off"))


def primitives(tmp_path: Path, function: Callable[[mx.array], mx.array], x: mx.array) -> set[str]:
    """The names of the operations in the graph that `function` leaves."""
    graph = tmp_path / "graph.dot"
    mx.export_to_dot(str(graph), function(x))
    return set(re.findall(r'label ?= ?"([A-Za-z]+)"', graph.read_text()))


def chain(x: mx.array) -> mx.array:
    return mx.tanh(mx.exp(x) + 1.0) * 2.0


@pytest.mark.skipif(mx.metal.is_available(), reason="on Metal fused kernels cost nothing, and are kept")
def test_a_compiled_step_brings_no_kernels_to_compile(tmp_path: Path) -> None:
    x = mx.arange(4.0)
    kept = primitives(tmp_path, compiled(chain, inputs=None, outputs=None), x)
    assert {"Exp", "Tanh", "Add"} <= kept
    fused = primitives(tmp_path, mx.compile(lambda x: chain(x)), x)  # the mode is as it was
    assert not {"Exp", "Tanh", "Add"} & fused


def test_where_the_environment_disables_compilation_the_mode_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # MLX reads it at its first compilation, which was before
    with unfused():
        assert "Tanh" not in primitives(tmp_path, mx.compile(lambda x: chain(x)), mx.arange(4.0))
