"""What the text encoder's tokens look at."""

import mlx.core as mx
import numpy as np
import pytest
from models.small import lively_model

from energy_flow_mlx import MultiHeadAttention
from energy_flow_mlx.text import Tokeniser


def test_weights_give_the_output():
    mx.random.seed(0)
    attention, x, mask = MultiHeadAttention(8, 2), mx.random.normal((3, 5, 8)), mx.array([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    weights = attention.weights(x, mask)
    assert weights.shape == (3, 2, 5, 5) and mx.allclose(mx.sum(weights, axis=-1), mx.ones((3, 2, 5)))
    value = attention.value_proj(x).reshape(3, 5, 2, 4).transpose(0, 2, 1, 3)
    wanted = attention.out_proj((weights @ value).transpose(0, 2, 1, 3).reshape(3, 5, 8))
    np.testing.assert_allclose(np.array(attention(x, mask)), np.array(wanted), atol=1e-6)
    assert mx.all(weights[1, :, :, 3:] == 0)


def test_the_encoder_gives_tokens_and_weights_of_every_layer():
    model = lively_model(text_num_layers=2)
    model.text_encoder.tokeniser = Tokeniser.whitespace(["a dog runs"], 20)
    tokens, weights = model.text_encoder.attention("a dog runs")
    assert tokens == ["[CLS]", "a", "dog", "runs", "[SEP]"] and weights.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    ids, _ = model.text_encoder.tokeniser.encode(["a dog runs"], 5)
    x = model.text_encoder._embedded(mx.array(ids))
    first, second = model.text_encoder.transformer_encoder.layers
    np.testing.assert_allclose(weights[1], np.array(second.self_attn.weights(first(x))[0]), atol=1e-6)
    with pytest.raises(TypeError, match=r"text\[0\] must be a string"):
        model.text_encoder.attention(3)
