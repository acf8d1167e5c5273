"""The flows' life computed again from checkpoints keeps few steps at a time.

What memory a graph takes is a matter of its order, not of what kernels compute: here they give zeros.
"""

import importlib
import pkgutil
from typing import Any

import mlx.core as mx
import pytest
from models.small import lively_model

from energy_flow_mlx import ops
from energy_flow_mlx.ops.compilation import unfused

STEPS = 24
WIDE = {"carrier_hidden_size": 64, "carrier_num_layers": 3, "lattice_depth": 2 * STEPS, "batch_size": 64}


def idle(op: str, body: str, inputs: dict[str, mx.array], outputs: dict[str, Any], **options: object) -> list[mx.array]:
    return list(mx.depends([mx.zeros(shape, dtype) for shape, dtype in outputs.values()], list(inputs.values())))


@pytest.fixture
def idle_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "on")
    for found in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"energy_flow_mlx.ops.{found.name}")
        if hasattr(module, "call"):
            monkeypatch.setattr(module, "call", idle)


def peak(**changes: object) -> int:
    """Bytes of the gradient of a surface with respect to the weights of the GRU."""
    model = lively_model(**WIDE, **changes)
    model.train()
    start = mx.zeros((64, model.config.surface_dim))
    weights = model.carrier.parameters()

    def loss(weights: dict[str, Any]) -> mx.array:
        model.carrier.update(weights)
        return mx.sum(model.processor(start, key=mx.random.key(0), training_step=0).surface)

    mx.eval(weights, start)
    mx.clear_cache()
    mx.reset_peak_memory()
    gradients = mx.compile(mx.grad(loss))
    with unfused():
        mx.eval(gradients(weights))
    return mx.get_peak_memory()


def test_segments_are_computed_again_one_at_a_time(idle_kernels: None) -> None:
    with mx.stream(mx.cpu):
        whole = peak()
        parts = [peak(gradient_checkpointing=True, checkpoint_steps=every) for every in (1, 4)]
    assert max(parts) < 0.4 * whole
