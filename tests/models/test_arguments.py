"""Arrays as people have them, and copies of a model."""

import copy
import pickle

import mlx.core as mx
import numpy as np
import pytest
from models.small import lively_model

from energy_flow_mlx.text import TextCache, Tokeniser

ROWS = np.random.default_rng(0).normal(size=(2, 10))


@pytest.mark.parametrize("given", [ROWS, ROWS.astype(np.float32), ROWS.tolist(), [mx.array(row) for row in ROWS], tuple(map(tuple, ROWS))])
def test_embeddings_of_numpy_and_lists(given):
    model = lively_model(input_residual=True)
    wanted = model(mx.array(ROWS.astype(np.float32))).embedding
    assert mx.array_equal(model(given).embedding, wanted)


def test_other_entrances_take_numpy_too():
    model = lively_model()
    surface = np.random.default_rng(0).uniform(-1, 1, (2, 12)).astype(np.float32)
    ids = np.array([[2, 5, 3], [2, 6, 3]])
    for call, arguments in (
        (model.processor, [surface]),
        (model.collector.collect, [surface]),
        (model.collector.collect, [surface.reshape(2, 3, 4)]),
        (model.mapper.map_to_surface, [ROWS.astype(np.float32)]),
        (model.text_to_surface, [ids, np.ones_like(ids)]),
    ):
        got, wanted = call(*arguments), call(*map(mx.array, arguments))
        for one, other in zip(*(result if isinstance(result, tuple) else [result] for result in (got, wanted)), strict=True):
            assert mx.array_equal(one, other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a dog runs", r"embeddings: texts came.* model\.trace\(texts\) and model\.text_encoder\.encode\(texts\) take texts"),
        (["a dog runs"], "embeddings: texts came"),
        ([[1.0, 2.0], [3.0]], "embeddings: list came, accepted is an array of numbers: of MLX, of NumPy, or lists of one length"),
        (None, "embeddings: NoneType came"),
        (ROWS[:0], r"embeddings: shape \(0, 10\) came, accepted is a batch of at least one row"),
        (mx.zeros((0, 10)), r"embeddings: shape \(0, 10\) came, accepted is a batch of at least one row"),
        (ROWS[0], r"embeddings: shape \(10,\) came, accepted is \(any, 10\)"),
    ],
)
def test_refused_embeddings(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        lively_model()(given)


@pytest.mark.parametrize("name", ["processor", "collector"])
def test_an_empty_surface_is_named(name):
    with pytest.raises(ValueError, match=r"surface: shape \(0, 12\) came, accepted is a batch of at least one row"):
        getattr(lively_model(), name)(mx.zeros((0, 12)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_a_copy_is_a_model_of_its_own(copied):
    model = lively_model(compute_dtype="bfloat16")
    model.text_encoder.tokeniser = Tokeniser.whitespace(["a dog runs"], 20)
    model.trained_steps = 7
    model.carrier.freeze()
    cache = TextCache()
    before, surface = model(ROWS).embedding, model.text_encoder.encode(["a dog"], cache=cache)
    twin = copied(model)
    assert mx.array_equal(twin(ROWS).embedding, before) and mx.array_equal(twin.text_encoder.encode(["a dog"]), surface)
    assert twin.trained_steps == 7 and not twin.training
    assert [name for name in twin.trainable_parameters()["carrier"]] == [name for name in model.trainable_parameters()["carrier"]]
    # The flows of the copy run on the copy's own weights.
    head = twin.carrier.displacement_projection[2]
    head.weight = -head.weight
    twin.text_encoder.token_embedding.weight = twin.text_encoder.token_embedding.weight + 1
    assert not mx.array_equal(twin(ROWS).embedding, before) and mx.array_equal(model(ROWS).embedding, before)
    assert not mx.array_equal(twin.text_encoder.encode(["a dog"], cache=cache), surface)
