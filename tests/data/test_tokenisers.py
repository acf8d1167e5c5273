"""Any tokenizer.json, and the whitespace tokeniser."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from data.encoders import TEXTS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from energy_flow_mlx.data import Tokeniser, open_tokeniser


def trained(kind: str, special: list[str]) -> Tokenizer:
    """The other kinds of tokeniser that models come with."""
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token=special[0], show_progress=False
        )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.mark.parametrize(
    ("kind", "special", "pad"),
    [
        ("bpe", ["<s>", "<pad>", "</s>"], 1),  # RoBERTa's
        ("bpe", ["<|endoftext|>"], 0),  # GPT-2's, without a padding
        ("unigram", ["<unk>", "</s>", "<pad>"], 2),  # T5's
    ],
)
def test_other_kinds(kind: str, special: list[str], pad: int, tmp_path: Path) -> None:
    plain = trained(kind, special)
    path = save(plain, tmp_path)
    for spec in (str(path), str(tmp_path)):
        tokeniser = open_tokeniser(spec)
        batch = tokeniser.encode(TEXTS[:20], 64)
        for row, text in enumerate(TEXTS[:20]):
            ids = plain.encode(text).ids
            assert batch.input_ids[row].tolist() == ids + [pad] * (64 - len(ids))
            assert batch.attention_mask[row].tolist() == [1] * len(ids) + [0] * (64 - len(ids))
        assert tokeniser.decode(plain.encode(TEXTS[0]).ids) == TEXTS[0]
        assert tokeniser.vocab_size == plain.get_vocab_size()


def test_a_padding_of_its_own_and_lengths_in_the_file(tmp_path: Path) -> None:
    tokenizer = trained("bpe", ["<blank>"])
    tokenizer.enable_padding(length=3, pad_id=0, pad_token="<blank>", direction="left")
    tokenizer.enable_truncation(2)
    batch = open_tokeniser(str(save(tokenizer, tmp_path))).encode(["a", TEXTS[0]], 9)
    assert batch.input_ids[0, 1:].tolist() == [0] * 8 and batch.attention_mask[0].tolist() == [1] + [0] * 8
    assert batch.attention_mask[1].all()
    open_tokeniser(str(tmp_path)).save(tmp_path / "again.json")
    saved = json.loads((tmp_path / "again.json").read_text())
    assert saved["truncation"] is None and saved["padding"]["strategy"] == "BatchLongest"
    again = open_tokeniser(tmp_path / "again.json").encode(["a", TEXTS[0]], 9)
    np.testing.assert_array_equal(again.input_ids, batch.input_ids)


def test_a_text_without_a_token_is_read_as_empty(tmp_path: Path) -> None:
    tokenizer = trained("unigram", ["<unk>", "<pad>"])
    tokenizer.normalizer = normalizers.Replace("zzz", "")
    batch = Tokeniser(tokenizer).encode(["a", "zzz", "empty"], 8)
    assert batch.attention_mask[1].any()
    np.testing.assert_array_equal(batch.input_ids[1], batch.input_ids[2])


def test_whitespace(tmp_path: Path) -> None:
    tokeniser = open_tokeniser("whitespace", texts=["the dog, the cat", "the Dog [PAD] cat \n"], vocab_size=8)
    assert tokeniser.vocab_size == 8
    batch = tokeniser.encode(["cat the\tunseen", "Dog"], 6)
    # By frequency, then by spelling: the 3 times, cat 2, Dog 1; dog, has no room.
    assert batch.input_ids.tolist() == [[2, 6, 5, 1, 3, 0], [2, 7, 3, 0, 0, 0]]
    assert batch.attention_mask.sum(1).tolist() == [5, 3]
    assert tokeniser.decode(batch.input_ids[0]) == "cat the"
    tokeniser.save(tmp_path / "tokenizer.json")
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["model"]["type"] == "WordLevel" and saved["pre_tokenizer"] == {"type": "WhitespaceSplit"}
    loaded = open_tokeniser(str(tmp_path))
    np.testing.assert_array_equal(loaded.encode(["cat the\tunseen", "Dog"], 6).input_ids, batch.input_ids)
    assert loaded.fingerprint == tokeniser.fingerprint
    built_in = open_tokeniser("whitespace")
    assert not (built_in.encode(TEXTS, 32).input_ids == 1).any()


def test_refused_specs(tmp_path: Path) -> None:
    for spec in (str(tmp_path / "absent.json"), "/no/such/folder"):
        with pytest.raises(FileNotFoundError, match=r"absent\.json|no such folder"):
            open_tokeniser(spec)
    with pytest.raises(ValueError, match=r"the folder has no tokenizer\.json"):
        open_tokeniser(str(tmp_path))
    with pytest.raises(ValueError, match="texts and vocab_size are accepted only with the tokeniser whitespace"):
        open_tokeniser(str(tmp_path), vocab_size=100)
    with pytest.raises(ValueError, match="vocab_size must be an integer of 6 or more"):
        open_tokeniser("whitespace", vocab_size=5)
    (tmp_path / "tokenizer.json").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json"):
        open_tokeniser(str(tmp_path))


def test_files_at_odds_with_themselves(tmp_path: Path) -> None:
    """Files that the library loads, and then panics on or makes ids of that its vocabulary does not have."""
    path = tmp_path / "tokenizer.json"
    Tokeniser.train(TEXTS, 150).save(path)
    good = json.loads(path.read_text())

    def refused(**changes: object) -> str:
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(ValueError, match=r"tokenizer\.json") as caught:
            open_tokeniser(str(path))
        return str(caught.value)

    template = good["post_processor"]
    assert "no entry found" in refused(post_processor={**template, "special_tokens": {}})
    strange = {**template["special_tokens"], "[CLS]": {"id": "[CLS]", "ids": [4_000_000_000], "tokens": ["[CLS]"]}}
    assert "gives the id 4000000000, its vocabulary has 150" in refused(
        post_processor={**template, "special_tokens": strange}
    )
    vocabulary = {**good["model"]["vocab"], "far": 4_000_000_000}
    assert "its largest id is 4000000000" in refused(model={**good["model"], "vocab": vocabulary})


def test_fuzzed_files_load_or_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    Tokeniser.whitespace(TEXTS, 40).save(path)
    good = path.read_bytes()
    draw = random.Random(1)
    cases = [good[:kept] for kept in range(0, len(good), 11)]
    for _ in range(200):
        changed = bytearray(good)
        changed[draw.randrange(len(good))] = draw.choice((draw.randrange(256), *b'0987-[]{}",:.e'))
        cases.append(bytes(changed))
    loaded = 0
    for case in cases:
        path.write_bytes(case)
        try:
            tokeniser = open_tokeniser(str(path))
            batch = tokeniser.encode(TEXTS[:3], 16)
        except ValueError:
            continue
        loaded += 1
        assert batch.input_ids.shape == (3, 16) and batch.input_ids.max() < tokeniser.vocab_size
    assert 0 < loaded < len(cases) - 20


def test_a_text_of_a_million_characters() -> None:
    for tokeniser in (Tokeniser.train(TEXTS, 150), Tokeniser.whitespace(TEXTS, 100)):
        batch = tokeniser.encode(["a " * 500_000, "x" * 1_000_000], 16)
        assert batch.input_ids.shape == (2, 16) and batch.attention_mask[0].all()
