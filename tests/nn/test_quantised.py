"""Quantised layers: the products of the dequantised weights, at any width; what would not gain stays as it is."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from energy_flow_mlx.nn import Embedding, GRUCell, Linear
from energy_flow_mlx.nn.embedding import QuantisedEmbedding
from energy_flow_mlx.nn.gru import QuantisedGRUCell
from energy_flow_mlx.nn.linear import QuantisedLinear
from energy_flow_mlx.nn.quantised import QuantisedMatrix, quantised_matrix


def normal(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "group"), [(64, 64), (128, 64), (32, 32), (40, 64), (80, 32), (400, 32), (768, 64)])
def test_a_matrix_keeps_its_entries_up_to_rounding(columns: int, group: int, bits: int) -> None:
    matrix = normal(7, columns)
    quantised = quantised_matrix(matrix, bits)
    assert quantised is not None
    assert quantised.group_size == group
    dense = quantised.dense(mx.float32)
    assert dense.shape == matrix.shape
    # MLX makes an end of a group's range exact and shifts the other: half a step and what that costs.
    assert mx.all(mx.abs(dense - matrix) < mx.max(mx.abs(quantised.scales), axis=1, keepdims=True))


@pytest.mark.parametrize(("columns", "bits", "gains"), [(3, 4, False), (4, 8, False), (16, 4, True), (16, 8, False), (24, 8, True), (33, 8, False), (33, 4, True)])
def test_short_rows_stay_as_they_are(columns: int, bits: int, gains: bool) -> None:
    assert (quantised_matrix(normal(5, columns), bits) is not None) == gains
    layer = Linear(columns, 5)
    assert (layer.to_quantized(bits=bits) is not layer) == gains


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(dtype: mx.Dtype, bias: bool) -> None:
    layer = Linear(80, 9, bias=bias)
    quantised = layer.to_quantized(bits=8)
    assert isinstance(quantised, QuantisedLinear)
    x = normal(2, 3, 80).astype(dtype)
    y = quantised(x)
    assert (y.dtype, y.shape) == (dtype, (2, 3, 9))
    wanted = x.astype(mx.float32) @ quantised.dense(mx.float32).T + (layer.bias if bias else 0)
    assert mx.allclose(y.astype(mx.float32), wanted, atol=1e-4 if dtype == mx.float32 else 0.1)


def test_gru_cell() -> None:
    cell = GRUCell(65, 40)
    quantised = cell.to_quantized(bits=8)
    assert isinstance(quantised, QuantisedGRUCell)
    dense = GRUCell(65, 40)
    weights = quantised.weights(mx.float32)
    dense.Wx, dense.Wh, dense.b, dense.bhn = weights.input, weights.hidden, cell.b, cell.bhn
    x, hidden = normal(6, 65), normal(6, 40)
    active = mx.array([True, False, True, True, False, True])
    assert mx.allclose(quantised(x, hidden, active), dense(x, hidden, active), atol=1e-6)
    assert mx.allclose(quantised(x, hidden), cell(x, hidden), atol=0.05)
    assert quantised.weights(mx.bfloat16).hidden.dtype == mx.bfloat16


def test_embedding() -> None:
    table = Embedding(11, 48)
    quantised = table.to_quantized(bits=8)
    assert isinstance(quantised, QuantisedEmbedding)
    ids = mx.array([[0, 10, -1], [3, 11, -12]])
    rows, wanted = np.array(quantised(ids)), np.array(table(ids))
    known = np.array([[True, True, True], [True, False, False]])
    assert np.abs(rows[known] - wanted[known]).max() < 0.05
    assert np.array_equal(rows[0, 1], rows[0, 2])
    assert np.isnan(rows[~known]).all()
    assert np.isnan(wanted[~known]).all()
    assert quantised(ids, mx.float16).dtype == mx.float16


@pytest.mark.parametrize("make", [lambda: Linear(64, 4), lambda: GRUCell(64, 64), lambda: Embedding(5, 64)])
def test_other_modes_are_refused_and_weights_are_frozen(make: Callable[[], nn.Module]) -> None:
    layer = make()
    with pytest.raises(ValueError, match="mode='mxfp4' is not accepted"):
        layer.to_quantized(mode="mxfp4")
    with pytest.raises(ValueError, match="quantize_input=True is not accepted"):
        layer.to_quantized(quantize_input=True)
    assert not layer.to_quantized().trainable_parameters().get("weight")
    holder = nn.Sequential(layer)
    nn.quantize(holder, bits=8, group_size=32)
    assert {module.bits for module in holder.modules() if isinstance(module, QuantisedMatrix)} == {8}
