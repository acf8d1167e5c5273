"""Dataset folders and files as the data of a run."""

import json
import threading

import numpy as np
import pytest
from dataset.files import full_records, placed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from energy_flow_mlx.config import ConfigError
from energy_flow_mlx.data.prefetch import Prefetch
from energy_flow_mlx.data.teacher import HashedNgramTeacher
from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.dataset.folder import PARTS, DatasetFolder
from energy_flow_mlx.dataset.formats import write_file
from energy_flow_mlx.dataset.open import open_data
from energy_flow_mlx.dataset.records import DataError, Record
from energy_flow_mlx.dataset.stream import FolderPairs, InputTokens, folder_data
from energy_flow_mlx.text.tokeniser import WordPieceTokeniser

SIZES = {"train": 1, "validation": 20, "test": 30, "seed": 1, "dim": 12, "vocab_size": 200, "max_length": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    build(Settings(sources=("builtin:300",), dim=12, shard_rows=64, validation=40, test=30), path, quiet=True)
    return path


@pytest.fixture()
def copy(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGY_FLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_batch_holds_what_its_texts_say(folder):
    data = open_data(str(folder), **SIZES)
    assert [len(part) for part in data[:3]] == [230, 40, 30]
    teacher = HashedNgramTeacher(12)
    for part in data[:3]:
        indices = np.array([7, 3, 3, len(part) - 1])
        batch, pairs = part.batch(indices), [part.texts(int(index)) for index in indices]
        np.testing.assert_array_equal(batch.input_embedding, teacher.embed([pair.input for pair in pairs]))
        np.testing.assert_array_equal(batch.target_embedding, teacher.embed([pair.target for pair in pairs]))
        tokens = data.tokeniser.encode([pair.input for pair in pairs], 10)
        np.testing.assert_array_equal(batch.input_ids, tokens.input_ids)
        np.testing.assert_array_equal(batch.attention_mask, tokens.attention_mask)
        assert [array.dtype.name for array in batch if array is not None] == ["float32", "float32", "int32", "int32", "int64"]
    assert part.batch(np.array([], dtype=np.int64)).input_embedding.shape == (0, 12)
    for bad in (-1, len(part)):
        with pytest.raises(IndexError, match=f"indices must be from 0 to 29, got {bad}"):
            part.batch(np.array([bad]))
        with pytest.raises(IndexError, match="index must be from 0 to 29"):
            part.texts(bad)


def test_embeddings_are_mapped_not_read(folder):
    opened = DatasetFolder(folder)
    assert all(isinstance(shard.embedding, np.memmap) for shard in opened._shards)
    assert len(opened._shards) == 10


def test_the_tokeniser_is_the_runs_or_the_folders_or_learnt(folder, copy):
    learnt = open_data(str(folder), **SIZES).tokeniser
    assert learnt.vocab_size <= 200
    own = WordPieceTokeniser.train(["just these words"], 60)
    own.save(copy / "tokenizer.json")
    assert open_data(str(copy), **SIZES).tokeniser.vocab_size == own.vocab_size
    given = WordPieceTokeniser.train(["others"], 60)
    assert open_data(str(copy), **SIZES, tokeniser=given).tokeniser is given


def test_what_does_not_fit_is_refused_with_both_values(folder, copy):
    with pytest.raises(ConfigError, match="it has embeddings of 12 numbers, input_embedding_dim_from_teacher is 13"):
        open_data(str(folder), **{**SIZES, "dim": 13})
    own = WordPieceTokeniser.train(["just these words and a few more"], 60)
    own.save(copy / "tokenizer.json")
    size = own.vocab_size
    with pytest.raises(ConfigError, match=f"its tokeniser does not fit the model: it has {size} vocabulary entries, text_vocab_size is 20"):
        open_data(str(copy), **{**SIZES, "vocab_size": 20})


def test_a_folder_without_held_out_pairs_is_refused(tmp_path):
    build(Settings(sources=("builtin:30",), dim=12, validation=0), tmp_path / "out", quiet=True)
    with pytest.raises(DataError, match="has no pairs in validation; build it with --validation"):
        open_data(str(tmp_path / "out"), **SIZES)


@pytest.mark.parametrize("suffix", [".jsonl", ".safetensors", ".efb2"])
def test_a_file_is_built_once_in_the_cache(tmp_path, cache, suffix):
    path = tmp_path / f"a{suffix}"
    write_file(path, placed(full_records(100, dim=12)))
    if suffix == ".efb2":  # its targets came with it, and its inputs need the teacher that made them
        with pytest.raises(DataError, match="--teacher must name the teacher of the former"):
            open_data(str(path), **SIZES)
        return
    data = open_data(str(path), **SIZES)
    assert [len(part) for part in data[:3]] == [80, 10, 10]  # at most a tenth each
    assert data.name == f"{path} (embeddings from its sources)"
    (made,) = cache.iterdir()
    before = (made / "dataset.json").stat().st_mtime_ns
    again = open_data(str(path), **SIZES)
    assert again.fingerprint == data.fingerprint and (made / "dataset.json").stat().st_mtime_ns == before
    write_file(path, placed(full_records(100, dim=12, seed=1)))
    assert open_data(str(path), **SIZES).fingerprint != data.fingerprint


def test_a_file_of_texts_gets_the_built_in_teacher(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("premise\thypothesis\n" + "".join(f"a{n}\tb{n}\n" for n in range(60)))
    data = open_data(str(path), **SIZES)
    assert data.name == f"{path} (teacher hashed-ngram-12-seed0)"
    pair = data.train.texts(0)
    np.testing.assert_array_equal(data.train.batch(np.array([0])).target_embedding, HashedNgramTeacher(12).embed([pair.target]))


def test_tokens_that_came_with_a_pair_are_used_and_cut(tmp_path):
    tokeniser = WordPieceTokeniser.train(["one two three four five six"], 60)
    tokeniser.save(tmp_path / "tokenizer.json")
    rows = np.eye(12, dtype=np.float32)
    ids = [np.arange(5, 5 + count, dtype=np.uint32) for count in range(1, 13)]
    made = [Record(f"text {n}", None, one, np.ones(len(one), np.uint8), rows[n], rows[-n]) for n, one in enumerate(ids)]
    made.append(Record("one two", None, None, None, rows[0], rows[1]))
    write_file(tmp_path / "a.jsonl", placed(made))
    settings = Settings(sources=(str(tmp_path / "a.jsonl"),), tokeniser=str(tmp_path / "tokenizer.json"), validation=1, test=1)
    build(settings, tmp_path / "out", quiet=True)
    data = folder_data(tmp_path / "out", dim=12, vocab_size=60, max_length=6)
    same = WordPieceTokeniser.from_file(tmp_path / "tokenizer.json")
    assert folder_data(tmp_path / "out", dim=12, vocab_size=60, max_length=6, tokeniser=same).tokeniser is same
    other = WordPieceTokeniser.train(["one two three seven"], 60)  # of a model that was trained on something else
    with pytest.raises(DataError, match="stores the tokens of its inputs, of another tokeniser than the model's"):
        folder_data(tmp_path / "out", dim=12, vocab_size=60, max_length=6, tokeniser=other)
    seen = 0
    for part in data[:3]:
        for index in range(len(part)):
            batch, text = part.batch(np.array([index])), part.texts(index).input
            if text == "one two":
                np.testing.assert_array_equal(batch.input_ids, tokeniser.encode([text], 6).input_ids)
                continue
            own = ids[int(text.split()[1])].tolist()
            kept = own if len(own) <= 6 else [*own[:5], own[-1]]
            assert batch.input_ids[0].tolist() == kept + [0] * (6 - len(kept))
            assert batch.attention_mask[0].tolist() == [1] * len(kept) + [0] * (6 - len(kept))
            seen += 1
    assert seen == 12


def test_without_texts_there_is_no_tokeniser(tmp_path):
    made = [record._replace(input=None, target=None, input_ids=None, attention_mask=None) for record in full_records(50, 12)]
    write_file(tmp_path / "a.safetensors", placed(made))
    data = open_data(str(tmp_path / "a.safetensors"), **SIZES)
    assert data.tokeniser is None
    batch = data.train.batch(np.arange(4))
    assert batch.input_ids.shape == (4, 10) and not batch.input_ids.any() and not batch.attention_mask.any()
    assert data.train.texts(0) == ("", "")


def test_a_file_of_too_few_pairs_is_refused_by_its_own_name(tmp_path, cache):
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"input": f"a{n}", "target": f"b{n}"}) + "\n" for n in range(9)))
    with pytest.raises(DataError, match=rf"data {path} holds 9 pairs, .* it takes 10 pairs or more"):
        open_data(str(path), **SIZES)
    assert not cache.exists()
    with path.open("a") as file:
        file.write('{"input": "a", "target": "b"}\n')
    data = open_data(str(path), **SIZES)
    assert [len(part) for part in data[:3]] == [8, 1, 1]


def test_a_cache_that_takes_no_files_is_refused_with_its_variable(tmp_path, monkeypatch):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"input": f"a{n}", "target": f"b{n}"}) + "\n" for n in range(20)))
    monkeypatch.delenv("ENERGY_FLOW_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # no folder can be made in a file
    with pytest.raises(DataError, match=r"pairs\.jsonl/.*kept here \(Not a directory\); .* ENERGY_FLOW_CACHE names another folder"):
        open_data(str(path), **SIZES)
    monkeypatch.setenv("ENERGY_FLOW_CACHE", str(tmp_path / "other"))
    assert len(open_data(str(path), **SIZES).train) == 16


def test_stored_data_shows_itself_and_its_texts_by_number(folder):
    data = open_data(str(folder), **SIZES)
    assert data.test[0] == data.test.texts(0) and data.test[-2:] == [data.test.texts(28), data.test.texts(29)]
    assert repr(data.test) == "<FolderPairs: 30 pairs, E = 12>"
    opened = DatasetFolder(folder)
    assert repr(opened) == f"<DatasetFolder {folder}: train 230, validation 40, test 30 pairs, {opened.rows} texts, E = 12>"


def test_open_data_says_what_it_accepts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a folder of this name may lie where the tests are run
    with pytest.raises(ValueError, match="data must be builtin, a folder built by .* build`, or a data file, got 'snli'"):
        open_data("snli", **SIZES)
    with pytest.raises(FileNotFoundError, match=r"dataset\.json: no such file"):
        open_data(str(tmp_path), **SIZES)


@pytest.mark.parametrize("name", ["rows-00000.safetensors", "pairs.safetensors", "dataset.json"])
def test_a_damaged_folder_names_the_file(copy, name):
    content = (copy / name).read_bytes()
    for size in (0, 1, 7, 9, len(content) // 2, len(content) - 2):
        (copy / name).write_bytes(content[:size])
        with pytest.raises(DataError, match=name):
            DatasetFolder(copy)
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        DatasetFolder(copy)


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_give_data_or_a_data_error(copy, data):
    name = data.draw(st.sampled_from(["rows-00000.safetensors", "pairs.safetensors", "dataset.json"]))
    content = (copy / name).read_bytes()
    changed = bytearray(content)
    place = data.draw(st.integers(0, min(len(content) - 1, 600)))
    changed[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (copy / name).write_bytes(changed)
    try:
        opened = DatasetFolder(copy)
        for part in PARTS:
            pairs = FolderPairs(opened, part, InputTokens(opened, None, 8))
            pairs.batch(np.arange(len(pairs)))
            for index in range(len(pairs)):
                pairs.texts(index)
    except (DataError, FileNotFoundError):
        pass
    finally:
        (copy / name).write_bytes(content)


def test_dataset_json_that_misstates_is_refused(copy):
    about = json.loads((copy / "dataset.json").read_text())
    for change, words in (
        ({"dim": 13}, r"embedding has shape \[64, 12\], dataset.json requires \[64, 13\]"),
        ({"dim": None}, "lacks or misstates"),
        ({"rows": 0}, "rows must be an integer from 1"),
        ({"shard_rows": 1.5}, "shard_rows must be an integer from 1"),
        ({"rows": 10**9}, r"rows-00009.safetensors: embedding has shape \[23, 12\]"),
        ({"rows": 10**30}, "rows must be an integer from 1 to"),
        ({"format": 2}, "unknown format 2; this version reads 1"),
        ({"pairs": {"train": 300, "validation": 40, "test": 30}}, "dataset.json requires"),
        ({"pairs": []}, "lacks or misstates"),
        ({"files": 3}, "lacks or misstates"),
    ):
        (copy / "dataset.json").write_text(json.dumps({**about, **change}))
        with pytest.raises((DataError, FileNotFoundError), match=words):
            DatasetFolder(copy)


def test_verify_finds_a_changed_file(copy):
    path = copy / "rows-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert DatasetFolder(copy).verify() == ["rows-00001.safetensors"]


def test_prefetch_gives_what_a_call_gives_one_step_ahead():
    called, names = [], set()

    def make(step):
        called.append(step)
        names.add(threading.current_thread().name)
        return step * step

    with Prefetch(make, last=5) as ahead:
        assert [ahead(step) for step in range(6)] == [0, 1, 4, 9, 16, 25]
        assert called == [0, 1, 2, 3, 4, 5]  # nothing past the last
        assert ahead(2) == 4  # another order works too
    assert names == {"prefetch_0"}


def test_prefetch_raises_where_the_step_is_asked_for():
    def make(step):
        if step == 1:
            raise DataError("a.bin: damaged")
        return step

    with Prefetch(make, last=5) as ahead:
        assert ahead(0) == 0
        with pytest.raises(DataError, match=r"a\.bin: damaged"):
            ahead(1)


def test_threads_may_share_the_tokeniser(folder):
    data = open_data(str(folder), **SIZES)
    wanted = [part.batch(np.arange(30)).input_ids for part in data[:3]]
    with Prefetch(lambda step: data.train.batch(np.arange(30)).input_ids, last=10**9) as ahead:
        for step in range(20):
            np.testing.assert_array_equal(data.validation.batch(np.arange(30)).input_ids, wanted[1])
            np.testing.assert_array_equal(ahead(step), wanted[0])
