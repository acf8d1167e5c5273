"""Folders that are no teacher, or a damaged one: each is refused with a text that names the file and the fault."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.encoders import TEXTS, change_config, change_weights, random_model, save

from energy_flow_mlx.data import HashedNgramTeacher, Tokeniser, open_teacher
from energy_flow_mlx.data.encoder_teacher import batches
from energy_flow_mlx.text.tokeniser import TokenBatch

Refused = Callable[..., str]


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_model(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "teacher"))


def kind_of(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def refused(folder: Path, error: type[Exception] = ValueError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        open_teacher(str(folder), **{"max_length": 20, **options})
    return str(caught.value)


def test_old_names_of_layer_norms_and_every_prefix(folder: Path) -> None:
    """Files written before 2020 say gamma and beta; bare encoders have no prefix, models with a head have one."""
    kind = kind_of(folder)
    expected = open_teacher(str(folder), max_length=20)

    def rename(tensors: dict[str, np.ndarray]) -> None:
        for key in list(tensors):
            new = key.removeprefix(f"{kind}.") if key.startswith(f"{kind}.") else f"{kind}.{key}"
            if "LayerNorm" in key or "layer_norm" in key:
                new = new.replace(".weight", ".gamma").replace(".bias", ".beta")
            tensors[new] = tensors.pop(key)
        tensors["embeddings.position_ids"] = np.arange(40)[None]
        tensors["embeddings.token_type_ids"] = np.zeros((1, 40), np.bool_)
        tensors["pooler.dense.scale"] = np.zeros((3, 1), np.int8)

    change_weights(folder, rename)
    renamed = open_teacher(str(folder), max_length=20)
    np.testing.assert_array_equal(renamed.embed(TEXTS[:5]), expected.embed(TEXTS[:5]))
    assert renamed.fingerprint == expected.fingerprint


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        (folder / name).unlink()
        assert f"the folder has no {name}" in refused(folder)
    save(random_model("bert"), folder)
    (folder / "model.safetensors").unlink()
    error = refused(folder)
    assert "pytorch_model.bin is a pickle" in error and "safe_serialization=True" in error
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "in several files" in refused(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("a")
    (folder / "model.safetensors").write_bytes(b"")
    assert "only vocab.txt" in refused(folder)
    assert "is a file; accepted are its folder" in refused(folder / "config.json")
    assert "no such folder" in refused(tmp_path / "absent", FileNotFoundError)


def test_settings_that_are_refused(folder: Path) -> None:
    kind = kind_of(folder)
    heads, layers, activation = {
        "bert": ("num_attention_heads", "num_hidden_layers", "hidden_act"),
        "distilbert": ("n_heads", "n_layers", "activation"),
    }[kind]
    good = (folder / "config.json").read_text()
    for changes, words in [
        ({"model_type": "roberta"}, "model_type='roberta' is not supported: accepted are bert, distilbert"),
        ({"model_type": ["bert"]}, "model_type=['bert'] is not supported"),
        ({activation: "silu"}, f"{activation}='silu' is not supported: it takes gelu, gelu_new"),
        ({activation: ["gelu"]}, "is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        ({"is_decoder": True}, "is_decoder=True is not supported"),
        ({heads: 7}, f"{heads}=7 must divide"),
        ({heads: 0}, f"{heads} must be an integer of 1 or more, got 0"),
        ({layers: "two"}, f"{layers} must be an integer of 1 or more, got 'two'"),
        ({layers: 10**12}, f"layers is {10**12} in config.json and 2 in the file"),
        ({"vocab_size": 10**15}, f"vocab_size is {10**15} in config.json and 150 in the file"),
        ({"max_position_embeddings": 10**15}, "in config.json and 40 in the file"),
    ]:
        change_config(folder, **changes)
        error = refused(folder)
        assert words in error and ("config.json" in error), error
        (folder / "config.json").write_text(good)
    if kind == "bert":
        change_config(folder, layer_norm_eps="tiny")
        assert "layer_norm_eps='tiny' is not accepted" in refused(folder)
    values = json.loads(good)
    del values[layers]
    (folder / "config.json").write_text(json.dumps(values))
    assert f"{layers} is missing" in refused(folder)
    for text in (b"", b"[1]", b'{"a"', b"\xff\xfe", b"[" * 100_000):
        (folder / "config.json").write_bytes(text)
        assert "config.json" in refused(folder)


def test_weights_that_are_refused(folder: Path) -> None:
    kind = kind_of(folder)
    word = "embeddings.word_embeddings.weight"
    norm = "embeddings.LayerNorm.weight"
    good = (folder / "model.safetensors").read_bytes()
    for change, words in [
        (
            lambda tensors: tensors.update({"lm_head.weight": np.zeros(2)}),
            f"unknown keys for model_type={kind}: lm_head",
        ),
        (lambda tensors: tensors.pop(norm), "norm.weight is missing"),
        (lambda tensors: tensors.pop(word), "dim is 24 in config.json and missing in the file"),
        (lambda tensors: tensors.update({norm: np.zeros(3, np.float32)}), "norm.weight has shape (3,)"),
        (lambda tensors: tensors.update({f"{kind}.{norm}": tensors[norm]}), "several keys name the same parameter"),
        (lambda tensors: tensors[norm].__setitem__(2, np.nan), "NaN or infinity in norm.weight"),
        (
            lambda tensors: tensors.update({norm: tensors[norm].view(np.int32)}),
            "weights must be F64, F32, F16, BF16; of another dtype are",
        ),
        (lambda tensors: tensors[norm].__setitem__(2, np.inf), "NaN or infinity in norm.weight"),
    ]:
        change_weights(folder, change)
        error = refused(folder)
        assert words in error and "model.safetensors" in error, error
        (folder / "model.safetensors").write_bytes(good)
    change_weights(folder, lambda tensors: tensors[norm].__setitem__(2, 1e6))
    assert open_teacher(str(folder), max_length=20).dim == 24
    assert "dtype=float16 holds values up to 65504, larger ones are in norm.weight" in refused(folder, dtype="float16")


def test_arguments_that_are_refused(folder: Path) -> None:
    name = "/".join(folder.parts[-2:])
    for options, words in [
        ({"dim": 768}, f"dim=768 is not the embedding size of {name} "),
        ({"pooling": "median"}, "pooling='median' is not accepted: it takes cls, max, mean"),
        ({"pooling": "cls+"}, "pooling='cls+' is not accepted"),
        ({"dtype": "float64"}, "dtype='float64' is not accepted: it takes float32, float16, bfloat16"),
        ({"max_length": 41}, f"max_length=41 is over the 40 positions of {name}:"),
        ({"max_length": 2}, "max_length must be an integer of 3 or more, got 2"),
    ]:
        assert words in refused(folder, **options)
    larger = Tokeniser.whitespace([f"word{number}" for number in range(300)], 200)
    larger.save(folder / "tokenizer.json")
    assert "has 200 entries, its encoder has 150" in refused(folder)
    for options, words in [
        ({"pooling": "cls"}, "pooling='cls' is not accepted with the teacher builtin"),
        ({"normalise": False}, "normalise=False is not accepted with the teacher builtin"),
        ({"dtype": "float16"}, "dtype='float16' is not accepted with the teacher builtin"),
    ]:
        with pytest.raises(ValueError, match=words):
            open_teacher("builtin", **options)


def test_built_in() -> None:
    teacher = open_teacher("builtin")
    assert isinstance(teacher, HashedNgramTeacher) and teacher.dim == 768
    assert open_teacher("builtin", dim=5).embed(["a"]).shape == (1, 5)
    prints = {open_teacher("builtin", dim=dim).fingerprint for dim in (4, 5)} | {HashedNgramTeacher(4, 1).fingerprint}
    assert len(prints) == 3 and HashedNgramTeacher(4).fingerprint in prints


def test_fingerprint_follows_what_decides_the_embeddings(folder: Path) -> None:
    def fingerprint(**options: Any) -> str:
        return open_teacher(str(folder), **{"max_length": 20, **options}).fingerprint

    base = fingerprint()
    assert base == fingerprint()
    variants = [{"pooling": "cls"}, {"normalise": False}, {"dtype": "float16"}, {"max_length": 21}]
    prints = [fingerprint(**variant) for variant in variants]
    change_weights(folder, lambda tensors: tensors["embeddings.LayerNorm.bias"].__iadd__(1e-6))
    prints.append(fingerprint())
    Tokeniser.train(TEXTS, 149).save(folder / "tokenizer.json")
    prints.append(fingerprint())
    assert len({base, *prints}) == len(variants) + 3


def test_texts(folder: Path) -> None:
    teacher = open_teacher(str(folder), max_length=20)
    assert teacher.embed([]).shape == (0, 24)
    together = teacher.embed(TEXTS)
    alone = np.concatenate([teacher.embed([text]) for text in TEXTS[:10]])
    np.testing.assert_allclose(together[:10], alone, atol=1e-5)
    million = teacher.embed(["word " * 200_000, "x" * 1_000_000, "\u65e5" * 1_000_000, "\x00" * 1_000_000])
    assert million.shape == (4, 24) and np.isfinite(million).all()
    with pytest.raises(TypeError, match=r"texts\[1\] must be a string, got int"):
        teacher.embed(["a", 3])
    with pytest.raises(ValueError, match=r"texts\[0\] is not valid Unicode"):
        teacher.embed(["\ud800"])


def test_an_embedding_that_overflows_names_its_text(folder: Path) -> None:
    def enlarge(tensors: dict[str, np.ndarray]) -> None:
        for key in tensors:
            if key.endswith(("lin2.weight", "output.dense.weight")):
                tensors[key] *= 3e4

    change_weights(folder, enlarge)
    assert np.isfinite(open_teacher(str(folder), max_length=20).embed(TEXTS[:2])).all()
    with pytest.raises(ValueError, match=r"texts\[0\]: .*float16.* holds NaN or infinity, or is all zeros"):
        open_teacher(str(folder), max_length=20, dtype="float16").embed(TEXTS[:2])


def test_batches_take_each_row_once_with_little_padding() -> None:
    lengths = np.concatenate([np.random.default_rng(0).integers(1, 51, 300), [0]])
    mask = (np.arange(50) < lengths[:, None]).astype(np.int32)
    ids = np.arange(mask.size, dtype=np.int32).reshape(mask.shape) * mask
    seen = np.zeros(len(lengths), dtype=int)
    shapes = set()
    for rows, batch in batches(TokenBatch(ids, mask)):
        height, width = batch.input_ids.shape
        shapes.add((height, width))
        seen[rows] += 1
        assert height >= len(rows) and height & (height - 1) == 0 and height <= 64
        np.testing.assert_array_equal(batch.input_ids[: len(rows)], ids[rows, :width])
        np.testing.assert_array_equal(batch.attention_mask[: len(rows)].sum(1), lengths[rows])
        assert width - lengths[rows].max() < 8 and (batch.attention_mask[len(rows) :].sum(1) == 1).all()
    assert (seen == 1).all() and len(shapes) <= 7


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    good = path.read_bytes()
    header = 8 + struct.unpack("<Q", good[:8])[0]
    for kept in [*range(0, 40), *range(40, header + 40, 97), *range(header, len(good), 4999), len(good) - 1]:
        path.write_bytes(good[:kept])
        assert "model.safetensors" in refused(folder), kept


def test_headers_with_absurd_sizes(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    for shape in ([2**62], [2**40, 2**40], [0, 10**30], [1] * 70, [-3], [True], [1.5], "12", {"a": 1}, [[3]], None):
        for offsets in ([0, 12], [0, 2**63], [0, 10**40], [0, 0], [0], [0, 1, 2], [1e999, 0], "01", None):
            text = json.dumps({"a": {**entry, "shape": shape, "data_offsets": offsets}}).encode()
            (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
            assert "model.safetensors" in refused(folder), (shape, offsets)
    for text in (
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"{",
        b"{}",
        b'{"__metadata__": [1]}',
        b'{"__metadata__": {"a": 1}}',
    ):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        assert "model.safetensors" in refused(folder)
    two = {"a": entry, "b": entry}  # both over the same bytes
    gap = {"a": {**entry, "data_offsets": [4, 16]}}
    for header in (two, gap, {"a": entry}):
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
        assert "overlap, or some bytes belong to no tensor" in refused(folder)
    for length in (0, 1, 2**32, 2**62, 2**64 - 1):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
        assert "model.safetensors" in refused(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_changed_bytes_load_or_are_refused(name: str, folder: Path) -> None:
    """Whatever bytes change in the parts that are parsed, nothing but a refusal that names the file comes out."""
    path = folder / name
    good = path.read_bytes()
    parsed = 8 + struct.unpack("<Q", good[:8])[0] if name == "model.safetensors" else len(good)
    draw = random.Random(0)
    refusals = 0
    expected = open_teacher(str(folder), max_length=20).embed(TEXTS[:1])
    for _ in range(150):
        changed = bytearray(good)
        for _ in range(draw.choice((1, 1, 3))):
            changed[draw.randrange(parsed)] = draw.choice((draw.randrange(256), *b'0987-[]{}",:.e'))
        path.write_bytes(changed)
        try:
            embeddings = open_teacher(str(folder), max_length=20).embed(TEXTS[:1])
        except ValueError as error:
            refusals += 1
            assert str(folder) in str(error) or "teacher" in str(error) or "texts" in str(error), error
        else:
            assert embeddings.shape == (1, 24) and np.isfinite(embeddings).all()
            if name == "model.safetensors":
                np.testing.assert_array_equal(embeddings, expected)
    assert refusals > 20
