import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_flow_mlx.data import (
    ArrayPairs,
    EpochOrder,
    HashedNgramTeacher,
    PairData,
    PairDataset,
    TextPair,
    TokenBatch,
    WordPieceTokeniser,
    built_in_data,
)
from energy_flow_mlx.dataset.open import open_data

SIZES = {"train": 400, "validation": 50, "test": 60, "seed": 1, "dim": 48, "vocab_size": 500, "max_length": 20}


@pytest.fixture(scope="module")
def data() -> PairData:
    return built_in_data(**SIZES)


def test_parts_have_their_sizes_and_share_no_premise(data):
    parts: list[PairDataset] = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [400, 50, 60]
    assert [part.dim for part in parts] == [48] * 3
    premises = [part.texts(index).input for part in parts for index in range(len(part))]
    assert len(set(premises)) == 510
    assert data.name == "builtin (seed 1, teacher hashed-ngram-48-seed0)"


def test_a_batch_holds_what_its_texts_say(data):
    indices = np.array([7, 3, 3, 399])
    batch = data.train.batch(indices)
    pairs = [data.train.texts(int(index)) for index in indices]
    teacher = HashedNgramTeacher(48)
    np.testing.assert_array_equal(batch.input_embedding, teacher.embed([pair.input for pair in pairs]))
    np.testing.assert_array_equal(batch.target_embedding, teacher.embed([pair.target for pair in pairs]))
    tokens = data.tokeniser.encode([pair.input for pair in pairs], 20)
    np.testing.assert_array_equal(batch.input_ids, tokens.input_ids)
    np.testing.assert_array_equal(batch.attention_mask, tokens.attention_mask)
    np.testing.assert_array_equal(batch.indices, indices)
    types = [array.dtype.name for array in batch if array is not None]
    assert types == ["float32", "float32", "int32", "int32", "int64"]
    assert data.train.batch(np.array([], dtype=np.int64)).input_embedding.shape == (0, 48)


def test_the_same_arguments_give_the_same_data(data):
    again, other = open_data("builtin", **SIZES), open_data("builtin", **{**SIZES, "seed": 2})
    for part, same in zip(data[:3], again[:3], strict=True):
        everything = np.arange(len(part))
        for first, second in zip(part.batch(everything), same.batch(everything), strict=True):
            np.testing.assert_array_equal(first, second)
    assert other.train.texts(0) != data.train.texts(0)


def test_a_given_tokeniser_is_used(data, tmp_path):
    path = tmp_path / "tokenizer.json"
    WordPieceTokeniser.train(["only these words"], 60).save(path)
    tokeniser = WordPieceTokeniser.from_file(path)
    other = open_data("builtin", **SIZES, tokeniser=tokeniser)
    assert other.tokeniser is tokeniser
    expected = tokeniser.encode([data.test.texts(0).input], 20).input_ids
    np.testing.assert_array_equal(other.test.batch(np.array([0])).input_ids, expected)


def test_the_task_is_neither_trivial_nor_hopeless():
    """Held-out cosine: the mean target is well below what a linear map learns, and that is well below 1."""
    data = built_in_data(6000, 10, 400, seed=0, dim=256, vocab_size=2000, max_length=32)
    train, test = data.train.batch(np.arange(6000)), data.test.batch(np.arange(400))

    def score(predicted):
        return float(np.mean(np.sum(predicted * test.target_embedding, 1) / np.linalg.norm(predicted, axis=1)))

    inputs, targets = train.input_embedding, train.target_embedding
    mean_in, mean_out = inputs.mean(0), targets.mean(0)
    gram = (inputs - mean_in).T @ (inputs - mean_in) + np.eye(256, dtype=np.float32)
    weight = np.linalg.solve(gram, (inputs - mean_in).T @ (targets - mean_out))
    ridge = score((test.input_embedding - mean_in) @ weight + mean_out)
    mean = score(np.broadcast_to(mean_out, test.target_embedding.shape))
    print(f"input {score(test.input_embedding):.3f}, mean {mean:.3f}, ridge {ridge:.3f}")
    assert 0.4 < score(test.input_embedding) < 0.7
    assert mean + 0.2 < ridge < 0.9


def test_batch_refuses(data):
    with pytest.raises(IndexError, match="indices must be from 0 to 399, got 400"):
        data.train.batch(np.array([0, 400]))
    with pytest.raises(IndexError, match="indices must be from 0 to 399, got -1"):
        data.train.batch(np.array([-1]))
    with pytest.raises(TypeError, match=r"indices must be integers \[B\], got float64 \[1\]"):
        data.train.batch(np.array([1.0]))
    with pytest.raises(TypeError, match=r"indices must be integers \[B\], got int64 \[1, 1\]"):
        data.train.batch(np.array([[1]]))
    for index in (-1, 400):
        with pytest.raises(IndexError, match="index must be from 0 to 399"):
            data.train.texts(index)


def test_array_pairs_refuse():
    pairs = [TextPair("a", "b"), TextPair("c", "d")]
    rows, tokens = np.ones((2, 3), np.float32), TokenBatch(np.ones((2, 4), np.int32), np.ones((2, 4), np.int32))
    assert len(ArrayPairs(pairs, rows, rows, tokens)) == 2
    with pytest.raises(ValueError, match=r"input_embedding must be \[2, E\], one row per pair, got \[1, 3\]"):
        ArrayPairs(pairs, rows[:1], rows, tokens)
    with pytest.raises(ValueError, match=r"target_embedding \[2, 2\] must have the shape of input_embedding \[2, 3\]"):
        ArrayPairs(pairs, rows, rows[:, :2], tokens)
    with pytest.raises(ValueError, match="target_embedding: row 1 holds NaN"):
        ArrayPairs(pairs, rows, np.array([[1, 1, 1], [1, np.nan, 1]]), tokens)
    with pytest.raises(ValueError, match=r"tokens.attention_mask must be \[2, T\] like the other, got \[2, 3\]"):
        ArrayPairs(pairs, rows, rows, tokens._replace(attention_mask=np.ones((2, 3), np.int32)))
    with pytest.raises(ValueError, match=r"tokens.input_ids must be \[2, T\]"):
        ArrayPairs(pairs, rows, rows, TokenBatch(tokens.input_ids[:1], tokens.attention_mask[:1]))


def test_data_shows_itself_and_its_texts_by_number():
    data = built_in_data(**SIZES)
    test = data.test
    assert test[0] == test.texts(0) and test[-1] == test.texts(59) and test[np.int64(3)] == test.texts(3)
    assert test[1:3] == [test.texts(1), test.texts(2)] and list(test) == [test.texts(index) for index in range(60)]
    for outside in (60, -61):
        with pytest.raises(IndexError, match=f"index must be from 0 to 59, got {outside}"):
            test[outside]
    with pytest.raises(TypeError):
        test["input"]
    assert repr(test) == "<ArrayPairs: 60 pairs, E = 48>"
    assert repr(HashedNgramTeacher(48)) == "<HashedNgramTeacher hashed-ngram-48-seed0: texts -> [N, 48]>"
    assert repr(data.tokeniser) == f"<Tokeniser WordPiece: {data.tokeniser.vocab_size} entries, padding [PAD]>"


def test_open_data_lists_what_it_accepts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder of this name may lie where the tests are run
    with pytest.raises(ValueError, match="data must be builtin, a folder .*, got .snli."):
        open_data("snli", **SIZES)


@pytest.mark.parametrize("name", ["train", "validation", "test", "seed", "dim", "vocab_size", "max_length"])
def test_built_in_data_names_the_bad_argument(name):
    small = {**SIZES, "train": 5, "validation": 2, "test": 2}
    with pytest.raises(ValueError, match=f"{name} must be"):
        built_in_data(**{**small, name: -1})
    with pytest.raises(TypeError, match=f"{name} must be"):
        built_in_data(**{**small, name: "5"})


@given(count=st.integers(1, 60), data=st.data(), seed=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation_without_its_tail(count, data, seed):
    batch_size = data.draw(st.integers(1, count))
    order = EpochOrder(count, batch_size, seed)
    for epoch in range(3):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order.indices(step) for step in steps]
        assert all(batch.shape == (batch_size,) for batch in batches)
        seen = np.concatenate(batches)
        assert len(set(seen.tolist())) == len(seen) == count - count % batch_size
        assert seen.min() >= 0 and seen.max() < count


def test_order_is_a_function_of_seed_and_step_alone():
    order = EpochOrder(1000, 32, seed=5)
    forward = [order.indices(step) for step in range(100)]
    for step in (99, 0, 31, 64):
        np.testing.assert_array_equal(EpochOrder(1000, 32, seed=5).indices(step), forward[step])
        np.testing.assert_array_equal(order.indices(step), forward[step])
    assert not np.array_equal(forward[0], forward[31])  # another epoch, another order
    assert not np.array_equal(forward[0], EpochOrder(1000, 32, seed=6).indices(0))


def test_changing_a_batch_of_indices_leaves_the_order_alone():
    order = EpochOrder(10, 5, seed=0)
    first = order.indices(0)
    first[:] = 0
    assert len(set(order.indices(0).tolist())) == 5


def test_order_is_pinned():
    """A change here would resume old runs in another order."""
    assert EpochOrder(10, 5, seed=0).indices(3).tolist() == PINNED


def test_order_refuses():
    with pytest.raises(ValueError, match="batch_size must be at most the 4 pairs of the data set, got 5"):
        EpochOrder(4, 5, 0)
    with pytest.raises(ValueError, match="count must be an integer of 1 or more, got 0"):
        EpochOrder(0, 1, 0)
    with pytest.raises(ValueError, match="step must be an integer of 0 or more, got -1"):
        EpochOrder(4, 2, 0).indices(-1)


PINNED = [8, 6, 2, 0, 3]
