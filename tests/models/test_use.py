"""A trained model in use: predictions from texts, neighbours, quantised weights."""

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from models.small import SMALL, lively_model
from numpy.typing import NDArray

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.data import HashedNgramTeacher, Tokeniser
from energy_flow_mlx.models.through_model import ThroughModel

TEXTS = ["a dog runs", "prices fell", "two men cook"]
TEACHER = HashedNgramTeacher(SMALL.embedding_dim)


class Identity:
    """A model's stand-in for a teacher: gives texts the rows of a table."""

    def __init__(self, rows: dict[str, list[float]]) -> None:
        self.rows = rows

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([self.rows[text] for text in texts], dtype=np.float32)


def reading_model(**changes: object) -> EnergyFlow:
    model = lively_model(text_max_positions=128, **changes)
    model.text_encoder.tokeniser = Tokeniser.whitespace(TEXTS, 20)
    return model


@pytest.mark.parametrize("residual", [True, False])
def test_predict_is_the_model_on_the_teachers_embeddings(residual: bool) -> None:
    model = reading_model(input_residual=residual)
    model.train()  # as a notebook may leave it
    predicted = model.predict(TEXTS, TEACHER)
    assert model.training
    model.eval()
    assert np.array_equal(np.array(predicted), np.array(model(mx.array(TEACHER.embed(TEXTS))).embedding))


def test_without_a_teacher_the_text_encoder_reads() -> None:
    model = reading_model()
    surface = model.text_encoder.encode(TEXTS)
    collected = model.collector(model.processor(surface, training_step=0).surface)
    assert np.allclose(np.array(model.predict(TEXTS)), np.array(collected), atol=1e-6)
    with pytest.raises(ValueError, match=r"teacher: None came, but this model adds its input's embedding .*input_residual"):
        reading_model(input_residual=True).predict(TEXTS)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_embed_gives_rows_of_length_1_in_batches(batch_size: int) -> None:
    model = reading_model()
    rows = model.embed(TEXTS, TEACHER, batch_size=batch_size)
    predicted = np.array(model.predict(TEXTS, TEACHER))
    assert rows.dtype == np.float32
    assert np.allclose(rows, predicted / np.linalg.norm(predicted, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("residual", [True, False])
def test_no_texts_give_no_rows(residual: bool) -> None:
    model = reading_model(input_residual=residual)
    assert model.embed([], TEACHER).shape == (0, SMALL.embedding_dim)
    assert model.nearest([], TEXTS, TEACHER) == []


def test_nearest_is_by_cosine_with_the_teachers_embeddings() -> None:
    model = reading_model()
    predicted = np.array(model.predict(["query"], Identity({"query": [1.0] + [0.0] * 9})))[0]
    rows = {"query": [1.0] + [0.0] * 9, "far": -predicted, "near": 3 * predicted, "off": np.roll(predicted, 1)}
    found = model.nearest(["query"], ["far", "off", "near"], Identity({name: list(row) for name, row in rows.items()}), count=2)
    assert [[(each.text, each.number) for each in row] for row in found] == [[("near", 2), ("off", 1)]]
    assert found[0][0].cosine == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.predict("a dog", TEACHER), "texts must be a list of strings, got str"),
        (lambda model: model.predict(TEXTS, HashedNgramTeacher(12)), r"have shape \(3, 12\), this model takes \(3, 10\)"),
        (lambda model: model.embed(TEXTS, TEACHER, batch_size=0), "batch_size must be an integer of 1 or more, got 0"),
        (lambda model: model.nearest(TEXTS, [], TEACHER), "among must hold at least one text, got none"),
        (lambda model: model.nearest(TEXTS, TEXTS, TEACHER, count=0), "count must be an integer of 1 or more, got 0"),
        (lambda model: model.quantise(5), "bits=5 is not accepted: it takes 4 or 8"),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call(reading_model())  # type: ignore[operator]


WIDE = dict(neuron_hidden_dim=32, neuron_output_dim=31, carrier_hidden_size=32, text_model_dim=32, text_feedforward_dim=48)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantised_model_is_near_the_model_and_is_saved(bits: int, dtype: str, tmp_path: Path) -> None:
    model = reading_model(factor=1.0, initial_weights="carrying", collection="bilinear", compute_dtype=dtype, **WIDE)
    before = model.embed(TEXTS, TEACHER)
    read = np.array(model.text_encoder.encode(TEXTS).astype(mx.float32))
    size = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    mark = model.text_encoder.fingerprint()
    model.quantise(bits)
    after = model.embed(TEXTS, TEACHER)
    assert model.quantised_bits == bits
    assert np.sum(before * after, axis=1).min() > (0.8 if bits == 4 else 0.99)
    assert np.abs(np.array(model.text_encoder.encode(TEXTS).astype(mx.float32)) - read).max() < (0.5 if bits == 4 else 0.05)
    assert sum(array.nbytes for _, array in tree_flatten(model.parameters())) < (0.5 if bits == 4 else 0.6) * size
    assert model.text_encoder.fingerprint() != mark
    model.trained_steps = 7
    model.save_pretrained(tmp_path / "model")
    loaded = EnergyFlow.from_pretrained(tmp_path / "model")
    assert (loaded.quantised_bits, loaded.trained_steps) == (bits, 7)
    assert np.array_equal(loaded.embed(TEXTS, TEACHER), after)
    with pytest.raises(ValueError, match=f"the model is quantised already, to {bits} bits"):
        loaded.quantise(8)


def test_mlx_quantises_the_whole_model() -> None:
    """`nn.quantize` as it is called on any model takes this one, its GRU and its embedding included."""
    model = reading_model(**WIDE)
    nn.quantize(model)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"QuantisedGRUCell", "QuantisedLinear", "QuantisedEmbedding"} <= kinds
    assert np.isfinite(model.embed(TEXTS)).all()


def test_every_bit_of_a_quantised_weight_is_in_the_fingerprint() -> None:
    model = reading_model(**WIDE)
    model.quantise(4)
    mark = model.text_encoder.fingerprint()
    codes = model.text_encoder.token_embedding.table.weight
    model.text_encoder.token_embedding.table.weight = codes ^ mx.array(1, dtype=mx.uint32)  # lost in a float32
    assert model.text_encoder.fingerprint() != mark


def test_damaged_bits_are_refused(tmp_path: Path) -> None:
    model = reading_model(**WIDE)
    model.save_pretrained(tmp_path)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())), {"quantised_bits": "many"})
    with pytest.raises(ValueError, match="quantised_bits in its metadata is 'many'; accepted are 4, 8"):
        EnergyFlow.from_pretrained(tmp_path)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_through_the_model_a_text_is_what_the_model_returns_for_it(batch_size: int) -> None:
    model, sizes = reading_model(), []

    def returned(texts: Sequence[str]) -> mx.array:
        sizes.append(len(texts))
        return model.predict(texts, TEACHER)

    rows = ThroughModel(model, returned, batch_size).embed(TEXTS)
    np.testing.assert_allclose(rows, model.embed(TEXTS, TEACHER), atol=1e-6)
    assert sizes == {1: [1, 1, 1], 2: [2, 1], 64: [3]}[batch_size]


@pytest.mark.parametrize("teacher", [TEACHER, None])
def test_a_corrected_text_stays_if_the_model_returns_the_same_for_it_and_else_the_nearest_does(
    teacher: HashedNgramTeacher | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked, near, found = reading_model(), [], ["near", "nearer", "nearest"], ["same", "almost", "hardly"]
    cosines = {"same": 0.9992, "almost": 0.9988, "hardly": 0.5}
    wanted = np.eye(10, dtype=np.float32)[:1].repeat(3, axis=0)
    through = ThroughModel(model, lambda texts: mx.array([[3 * cosines[text], 3 * np.sqrt(1 - cosines[text] ** 2), *[0] * 8] for text in texts]), 2)

    def correct(self: EnergyFlow, texts: list[str], goal: np.ndarray, by: object, **settings: object) -> list[str]:
        assert self is model and goal is wanted and settings == {"rounds": 3, "neighbours": 2, "search": None}
        asked.append((texts, by))
        return near if by is TEACHER else found

    monkeypatch.setattr(EnergyFlow, "correct", correct)
    corrected = through.correct(["x", "y", "z"], wanted, teacher, rounds=3, neighbours=2)
    if teacher is None:
        assert corrected == found and asked == [(["x", "y", "z"], through)]
    else:
        assert corrected == ["same", "nearer", "nearest"]
        assert asked == [(["x", "y", "z"], TEACHER), (near, through)]
