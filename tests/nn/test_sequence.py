"""run: layers in order, and Linear, GELU, LayerNorm as one kernel where kernels are picked."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from metal_cpu import metal_on_cpu
from mlx.utils import tree_flatten

from energy_flow_mlx.models.collector import OutputCollector
from energy_flow_mlx.models.mapper import EmbeddingMapper
from energy_flow_mlx.nn import Linear, run
from energy_flow_mlx.ops.kernel import VARIABLE, build


def layers() -> list[nn.Module]:
    mx.random.seed(0)
    made = [
        Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Dropout(0.0),  # one kernel
        Linear(7, 6), nn.LayerNorm(6), nn.GELU(),  # another order
        Linear(6, 6, bias=False), nn.GELU(), nn.LayerNorm(6),
        Linear(6, 6), nn.GELU("tanh"), nn.LayerNorm(6),
        Linear(6, 6), nn.GELU(), nn.LayerNorm(6, bias=False),
        Linear(6, 4), nn.GELU(),
    ]  # fmt: skip
    for layer in made:
        layer.update({name: value + 0.1 * mx.random.normal(value.shape) for name, value in layer.parameters().items()})
    return made


def test_layers_run_in_order_and_only_the_triple_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = mx.random.normal((3, 5), key=mx.random.key(1))
    wanted = x
    for layer in layers():
        wanted = layer(wanted)
    monkeypatch.setenv(VARIABLE, "off")
    assert mx.array_equal(run(layers(), x), wanted)
    monkeypatch.setenv(VARIABLE, "on")
    with metal_on_cpu(caches=[build]) as session:
        actual = run(layers(), x)
        mx.eval(actual)
    assert len(session.launches) == 1
    np.testing.assert_allclose(np.array(actual), np.array(wanted), atol=1e-5)


@pytest.mark.parametrize("kind", [EmbeddingMapper, OutputCollector])
def test_modules_give_the_same_with_kernels(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and the gradients of every parameter; both triples of the module are kernels."""
    mx.random.seed(0)
    module = kind(12, 3, 2)
    module.eval()
    x = mx.random.normal((3, 12 if kind is EmbeddingMapper else 6), key=mx.random.key(1))

    def loss(module: nn.Module) -> mx.array:
        return mx.sum(mx.square(module(x)))

    results = {}
    for setting in ("off", "on"):
        monkeypatch.setenv(VARIABLE, setting)
        with metal_on_cpu(caches=[build]) as session:
            value, gradients = nn.value_and_grad(module, loss)(module)
            mx.eval(value, gradients)
        results[setting] = {"loss": value, **dict(tree_flatten(gradients))}
        assert len(session.launches) == (4 if setting == "on" else 0)
    assert results["on"].keys() == results["off"].keys()
    for name, wanted in results["off"].items():
        scale = max(1.0, mx.max(mx.abs(wanted)).item())
        np.testing.assert_allclose(np.array(results["on"][name]), np.array(wanted), atol=1e-5 * scale, err_msg=name)
