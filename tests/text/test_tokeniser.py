import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from energy_flow_mlx.data import WordPieceTokeniser, generate_pairs

TRAIN_IDS = """
from energy_flow_mlx.data import WordPieceTokeniser, generate_pairs
texts = [text for pair in generate_pairs(300, 0) for text in pair]
print(WordPieceTokeniser.train(texts, 400).encode(texts[:20], 24).input_ids.tolist())
"""


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for pair in generate_pairs(2000, 0) for text in pair]


@pytest.fixture(scope="module")
def tokeniser(texts) -> WordPieceTokeniser:
    return WordPieceTokeniser.train(texts, 2000)


def test_golden_tokeniser_gives_the_golden_ids(golden):
    """The golden ids are padded to the longest of the four texts, which is 20 tokens."""
    tokeniser = WordPieceTokeniser.from_file(golden / "tokenizer.json")
    expected = load_file(golden / "modules.safetensors")
    batch = tokeniser.encode(json.loads((golden / "texts.json").read_text()), max_length=20)
    np.testing.assert_array_equal(batch.input_ids, expected["text_encoder.input_ids"])
    np.testing.assert_array_equal(batch.attention_mask, expected["text_encoder.attention_mask"])
    assert tokeniser.vocab_size == expected["text_encoder.grad.token_embedding.weight"].shape[0]


def test_special_tokens_have_their_ids(tokeniser, tmp_path):
    tokeniser.save(tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [(token["id"], token["content"]) for token in saved["added_tokens"]] == list(enumerate(names))
    assert [saved["model"]["vocab"][name] for name in names] == [0, 1, 2, 3, 4]
    assert sorted(saved["model"]["vocab"].values()) == list(range(tokeniser.vocab_size))


def test_static_shapes_padding_and_truncation(tokeniser):
    batch = tokeniser.encode(["a cat", "a " * 50], max_length=8)
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, 8)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int32
    length = batch.attention_mask[0].sum()
    assert batch.input_ids[0, 0] == 2 and batch.input_ids[0, length - 1] == 3 and not batch.input_ids[0, length:].any()
    assert batch.attention_mask[0].tolist() == [1] * length + [0] * (8 - length)
    assert batch.input_ids[1, 0] == 2 and batch.input_ids[1, -1] == 3 and batch.attention_mask[1].all()
    assert tokeniser.encode(["a cat"], max_length=5).input_ids.shape == (1, 5)
    assert tokeniser.encode([], max_length=5).input_ids.shape == (0, 5)


def test_empty_texts_are_encoded_as_the_word_empty(tokeniser):
    batch = tokeniser.encode(["", "  \n", "empty"], max_length=8)
    np.testing.assert_array_equal(batch.input_ids[0], batch.input_ids[2])
    np.testing.assert_array_equal(batch.input_ids[1], batch.input_ids[2])
    assert batch.attention_mask[0].sum() > 2


def test_decode_gives_the_text_back(tokeniser, texts):
    plain = [text for text in texts if "," not in text][:200]
    assert [tokeniser.decode(row) for row in tokeniser.encode(plain, 32).input_ids] == plain
    assert tokeniser.decode([2, 0, 3]) == ""


def test_no_built_in_word_is_unknown(tokeniser, texts):
    assert not (tokeniser.encode(texts, 32).input_ids == 1).any()
    assert (tokeniser.encode(["日"], 8).input_ids == 1).any()


def test_training_is_the_same_in_every_process():
    runs = set()
    for seed in "123":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", TRAIN_IDS]
        runs.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(runs) == 1 and len(runs.pop()) > 100


def test_save_and_load(tokeniser, texts, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("an older file")
    before = tokeniser.encode(texts[:50], 12)
    tokeniser.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    saved = json.loads(path.read_text())
    assert saved["padding"] is None and saved["truncation"] is None
    loaded = WordPieceTokeniser.from_file(path)
    assert loaded.vocab_size == tokeniser.vocab_size
    np.testing.assert_array_equal(loaded.encode(texts[:50], 12).input_ids, before.input_ids)
    np.testing.assert_array_equal(tokeniser.encode(texts[:50], 12).input_ids, before.input_ids)


def test_vocab_size_is_respected(texts):
    assert WordPieceTokeniser.train(texts, 100).vocab_size == 100
    with pytest.raises(ValueError, match=r"vocab_size must be at least \d+, the special .* letters of texts, got 10"):
        WordPieceTokeniser.train(texts, 10)
    with pytest.raises(ValueError, match="vocab_size must be an integer of 6 or more, got 5"):
        WordPieceTokeniser.train(texts, 5)
    with pytest.raises(ValueError, match="texts must hold at least one text"):
        WordPieceTokeniser.train([], 100)


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        ("a cat", TypeError, "texts must be a list of strings, got str"),
        (["a", 3], TypeError, r"texts\[1\] must be a string, got int"),
        (["a", "\udfff"], ValueError, r"texts\[1\] is not valid Unicode"),
    ],
)
def test_encode_and_train_refuse(tokeniser, bad, error, text):
    with pytest.raises(error, match=text):
        tokeniser.encode(bad, 8)
    with pytest.raises(error, match=text):
        WordPieceTokeniser.train(bad, 100)


def test_lengths_and_ids_are_checked(tokeniser):
    with pytest.raises(ValueError, match="max_length must be an integer of 3 or more, got 2"):
        tokeniser.encode(["a"], 2)
    last = tokeniser.vocab_size - 1
    with pytest.raises(ValueError, match=rf"ids\[1\] must be an integer from 0 to {last}, got {last + 1}"):
        tokeniser.decode([5, last + 1])
    with pytest.raises(TypeError, match=r"ids\[0\] must be an integer"):
        tokeniser.decode(["a"])


def test_files_that_are_no_tokeniser(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokeniser at .*absent\.json"):
        WordPieceTokeniser.from_file(tmp_path / "absent.json")
    path = tmp_path / "broken.json"
    for text in ("{", "{}", "[1, 2]"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"broken\.json is not a tokenizer\.json"):
            WordPieceTokeniser.from_file(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"broken\.json is not a tokenizer\.json"):
        WordPieceTokeniser.from_file(path)
    path.write_text(json.dumps(word_level({})))
    with pytest.raises(ValueError, match=r"broken\.json: .*its vocabulary is empty"):
        WordPieceTokeniser.from_file(path)


def word_level(vocabulary: dict[str, int], special: str | None = None) -> dict[str, object]:
    """A tokenizer.json that splits at white space."""
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "a"}
    fields = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    added = [{"id": vocabulary[special], "content": special, **fields}] if special else []
    return {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": model}


@pytest.mark.parametrize(("special", "pad"), [("<|finetune_right_pad_id|>", 2), (None, 0)])
def test_any_token_pads_because_padding_is_masked(tmp_path, special, pad):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(word_level({"a": 0, "dog": 1, "<|finetune_right_pad_id|>": 2}, special)))
    batch = WordPieceTokeniser.from_file(path).encode(["dog a"], 5)
    assert batch.input_ids.tolist() == [[1, 0, pad, pad, pad]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0, 0]]


@pytest.mark.parametrize("text", ["", " \t", "\u200b", "\ufeff\u200d", "\x07\x00", "\u00ad\u2060 \u202e"])
def test_a_text_without_visible_characters_is_encoded_as_empty(tokeniser, text):
    for ours, empty in zip(tokeniser.encode([text], 9), tokeniser.encode(["empty"], 9), strict=True):
        np.testing.assert_array_equal(ours, empty)


def test_a_text_in_which_the_tokeniser_finds_no_token_is_encoded_as_empty(tokeniser):
    accent = "\u0301"  # the tokeniser strips accents
    np.testing.assert_array_equal(*(tokeniser.encode([text], 9).input_ids for text in (accent, "empty")))


def test_a_byte_order_mark_is_dropped(tmp_path):
    tokeniser = WordPieceTokeniser.whitespace(["a dog runs"], 20)
    tokeniser.save(tmp_path / "tokenizer.json")
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "tokenizer.json").read_bytes())
    assert WordPieceTokeniser.from_file(tmp_path / "marked.json").fingerprint == tokeniser.fingerprint


def test_a_huge_vocab_size_asks_for_no_more_memory_than_the_texts_can_fill(texts):
    assert WordPieceTokeniser.train(texts[:20], 2**40).fingerprint == WordPieceTokeniser.train(texts[:20], 20_000).fingerprint
