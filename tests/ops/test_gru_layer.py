"""gru_layer: the fused derivative against the graph's own."""

import mlx.core as mx
import numpy as np
import pytest

from energy_flow_mlx.ops.gru_layer import gru_layer

from .kernel_parity import backends, compare


def arguments(rows: int, inputs: int, size: int) -> list[mx.array]:
    rng = np.random.default_rng(rows)
    shapes = [(rows, inputs), (rows, size), (3 * size, inputs), (3 * size, size), (3 * size,), (size,)]
    floats = [mx.array((rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)) for shape in shapes]
    return [*floats, mx.array(rng.random(rows) < 0.7)]


@backends
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("bound", [None, 10.0])
def test_kernel_equals_reference(where: str, dtype: mx.Dtype, bound: float | None) -> None:
    def layer(kernels: bool) -> object:
        return lambda *given: gru_layer(*given, bound=bound, kernels=kernels)

    compare(where, layer(True), layer(False), arguments(37, 6, 12), dtype=dtype)
    compare(where, layer(True), layer(False), arguments(5, 3, 4)[:6], dtype=dtype)
