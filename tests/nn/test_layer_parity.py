"""The layers of `energy_flow_mlx.nn` agree with torch's."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from models.parity import assert_agree, assert_close
from models.small import SMALL
from models.torch_modules import sinusoids

from energy_flow_mlx import GRUCell, MultiHeadAttention, PositionalEncoding, TransformerEncoder, TransformerEncoderLayer
from energy_flow_mlx.nn.gru import initialise_gru, orthogonal


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("rows", "inputs", "size"), [(1, 3, 5), (11, 8, 7)])
@pytest.mark.parametrize("layer", [GRUCell, nn.GRU])
def test_gru_step(layer: type, rows: int, inputs: int, size: int) -> None:
    torch.manual_seed(0)

    def forward(module: nn.Module, x: mx.array, hidden: mx.array) -> list[mx.array]:
        return [module(x, hidden) if layer is GRUCell else module(x[:, None], hidden)[:, 0]]

    assert_agree(
        layer(inputs, size),
        torch.nn.GRU(inputs, size),
        [normal(rows, inputs), normal(rows, size, seed=1)],
        prefix="carrier.gru.0.",
        torch_prefix="carrier.gru.",
        config=SMALL,
        forward=forward,
        torch_forward=lambda module, x, hidden: [module(x[None], hidden[None])[0][0]],
    )


def test_gru_keeps_the_hidden_state_of_inactive_rows() -> None:
    cell = GRUCell(3, 5)
    x, hidden = mx.array(normal(4, 3)), mx.array(normal(4, 5))
    active = mx.array([True, False, True, False])
    new, all_new = np.array(cell(x, hidden, active)), np.array(cell(x, hidden))
    assert np.array_equal(new[1::2], np.array(hidden)[1::2])
    assert np.array_equal(new[::2], all_new[::2])
    assert not np.allclose(all_new[1::2], np.array(hidden)[1::2])


@pytest.mark.parametrize("layer", [GRUCell, nn.GRU])
def test_initial_weights_of_the_gru(layer: type) -> None:
    cell = layer(4, 6)
    initialise_gru(cell)
    wh, wx = np.array(cell.Wh), np.array(cell.Wx)
    assert_close("Wh is orthogonal", wh.T @ wh, np.eye(6))
    bound = np.sqrt(6 / (18 + 4))
    assert 0.8 * bound < np.abs(wx).max() <= bound
    assert np.array_equal(np.array(cell.b), np.repeat([0.0, 2.0, 0.0], 6))
    assert np.array_equal(np.array(cell.bhn), np.zeros(6))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 4), (1536, 512)])
def test_orthogonal(rows: int, columns: int) -> None:
    mx.random.seed(3)
    q = np.array(orthogonal(rows, columns))
    assert q.shape == (rows, columns) and q.dtype == np.float32
    assert_close("columns are orthonormal", q.T @ q, np.eye(columns))
    mx.random.seed(3)
    r = q.T @ np.array(mx.random.normal((rows, columns)))
    assert_close("R is triangular", np.tril(r, -1) / rows**0.5, np.zeros_like(r))
    assert (np.diagonal(r) > 0).all()


def test_initial_weights_depend_on_the_seed_alone() -> None:
    def weights(seed: int) -> np.ndarray:
        mx.random.seed(seed)
        return np.array(GRUCell(3, 5).Wh)

    assert np.array_equal(weights(1), weights(1)) and not np.array_equal(weights(1), weights(2))


LENGTHS = np.array([5, 2, 4])


def padded(lengths: np.ndarray) -> np.ndarray:
    return np.arange(lengths.max()) < lengths[:, None]


@pytest.mark.parametrize(("lengths", "dim", "heads"), [(np.array([1]), 3, 1), (LENGTHS, 12, 3)])
def test_attention(lengths: np.ndarray, dim: int, heads: int) -> None:
    torch.manual_seed(1)
    mask = padded(lengths)

    def torch_forward(module: torch.nn.MultiheadAttention, x: torch.Tensor) -> list[torch.Tensor]:
        return [module(x, x, x, key_padding_mask=~torch.tensor(mask), need_weights=False)[0]]

    assert_agree(
        MultiHeadAttention(dim, heads),
        torch.nn.MultiheadAttention(dim, heads, batch_first=True),
        [normal(*mask.shape, dim)],
        prefix="text_encoder.layer.self_attn.",
        config=SMALL,
        forward=lambda module, x: [module(x, mx.array(mask))],
        torch_forward=torch_forward,
    )


def test_attention_with_dropout_keeps_its_mean() -> None:
    """The path that drops weights, which the fused one cannot: exact without loss at p -> 0, and unbiased."""
    mx.random.seed(0)
    attention = MultiHeadAttention(8, 2, dropout=1e-7)
    x, mask = mx.array(normal(3, 5, 8)), mx.array(padded(LENGTHS))
    exact = np.array(attention.eval()(x, mask))
    assert_close("own products against the fused op", attention.train()(x, mask), exact)
    dropping = MultiHeadAttention(8, 2, dropout=0.5)
    dropping.update(attention.parameters())
    draws = np.mean([np.array(dropping.train()(x, mask)) for _ in range(400)], axis=0)
    assert not np.allclose(np.array(dropping(x, mask)), exact, atol=1e-2)
    assert np.abs(draws - exact).max() < 0.2


def test_attention_refuses_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="heads=3 must divide dim=8"):
        MultiHeadAttention(8, 3)


@pytest.mark.parametrize(("lengths", "dim", "heads", "inner"), [(np.array([1]), 6, 2, 5), (LENGTHS, 12, 4, 7)])
def test_transformer_layer(lengths: np.ndarray, dim: int, heads: int, inner: int) -> None:
    torch.manual_seed(2)
    mask = padded(lengths)
    assert_agree(
        TransformerEncoderLayer(dim, heads, inner),
        torch.nn.TransformerEncoderLayer(dim, heads, inner, activation="gelu", batch_first=True),
        [normal(*mask.shape, dim)],
        prefix="text_encoder.layer.",
        config=SMALL,
        # Rows of padding mean nothing and torch may leave them out.
        forward=lambda module, x: [module(x, mx.array(mask)) * mx.array(mask)[..., None]],
        torch_forward=lambda module, x: [
            module(x, src_key_padding_mask=~torch.tensor(mask)) * torch.tensor(mask)[..., None]
        ],
    )


def test_transformer_stack_without_a_mask() -> None:
    torch.manual_seed(3)
    layer = torch.nn.TransformerEncoderLayer(6, 3, 5, activation="gelu", batch_first=True)
    assert_agree(
        TransformerEncoder(3, 6, 3, 5),
        torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False),
        [normal(2, 4, 6)],
        prefix="text_encoder.",
        config=SMALL,
        forward=lambda module, x: [module(x)],
        torch_forward=lambda module, x: [module(x)],
    )


@pytest.mark.parametrize(("positions", "dim"), [(7, 6), (512, 5), (3, 1)])
def test_positional_encoding_starts_sinusoidal(positions: int, dim: int) -> None:
    encoding = PositionalEncoding(positions, dim)
    assert_close("weight", encoding.weight, sinusoids(positions, dim))
    x = mx.array(normal(2, 3, dim))
    assert_close("sum", encoding(x), np.array(x) + sinusoids(3, dim).numpy())
    with pytest.raises(ValueError, match=f"{positions + 1} tokens came, the positional encoding covers {positions}"):
        encoding(mx.zeros((1, positions + 1, dim)))
