"""Building dataset folders: what goes in, how it is split, and what a kill leaves."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import huggingface_hub
import numpy as np
import pytest
from dataset.files import placed
from hypothesis import given
from hypothesis import strategies as st

from energy_flow_mlx.data.teacher import HashedNgramTeacher
from energy_flow_mlx.dataset import build as build_module
from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.dataset.claim import PLAN, claimed
from energy_flow_mlx.dataset.folder import PARTS, DatasetFolder, read_folder
from energy_flow_mlx.dataset.formats import write_file
from energy_flow_mlx.dataset.formats.rows import Selection
from energy_flow_mlx.dataset.records import DataError, Record
from energy_flow_mlx.dataset.split import choose, split_groups
from energy_flow_mlx.lock import locked
from energy_flow_mlx.text.tokeniser import WordPieceTokeniser


def pairs_of(folder, *parts):
    return [(record.input, record.target) for _, record in read_folder(folder, parts or PARTS)]


def write_pairs(path, pairs, **more):
    path.write_text("".join(json.dumps({"text": a, "target": b, **more}) + "\n" for a, b in pairs))
    return str(path)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def small(*sources, **changes):
    return Settings(**{"sources": sources, "dim": 16, "shard_rows": 50, "batch_size": 16, **changes})


def test_a_folder_holds_the_pairs_and_the_teachers_embeddings(tmp_path):
    source = write_pairs(tmp_path / "a.jsonl", [(f"premise {n}", f"target {n % 7}") for n in range(100)])
    folder = build(small(source, validation=10, test=20), tmp_path / "out", quiet=True)
    assert folder.sizes == {"train": 70, "validation": 10, "test": 20}
    assert Counter(pairs_of(tmp_path / "out")) == Counter((f"premise {n}", f"target {n % 7}") for n in range(100))
    teacher = HashedNgramTeacher(16)
    for _, record in read_folder(tmp_path / "out"):
        np.testing.assert_array_equal(record.input_embedding, teacher.embed([record.input])[0])
        np.testing.assert_array_equal(record.target_embedding, teacher.embed([record.target])[0])
    about = folder.about
    assert folder.rows == 107 and about["teacher"]["name"] == teacher.name and about["normalised"] is True
    assert set(about["files"]) == {"rows-00000.safetensors", "rows-00001.safetensors", "rows-00002.safetensors", "pairs.safetensors"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*about["files"], "dataset.json"])
    assert folder.verify() == []


def test_each_distinct_text_is_embedded_once_with_others_of_its_length(tmp_path, monkeypatch):
    batches = []

    class Teacher(HashedNgramTeacher):
        def embed(self, texts):
            batches.append([len(text) for text in texts])
            return super().embed(texts)

    monkeypatch.setattr(build_module, "open_teacher", lambda spec, dim, **options: Teacher(dim))
    pairs = [("word " * (n % 40 + 1) + str(n % 80), "t" * (n % 5 + 1)) for n in range(160)]
    build(small(write_pairs(tmp_path / "a.jsonl", pairs)), tmp_path / "out", quiet=True)
    lengths = [length for batch in batches for length in batch]
    assert len(lengths) == 85 == len({text for pair in pairs for text in pair})
    assert lengths == sorted(lengths)
    assert max(map(len, batches)) == 16


def test_duplicates_empty_and_endless_texts_are_left_out_and_counted(tmp_path):
    pairs = [("a", "b"), ("a", "b"), ("a", "c"), (" ", "b"), ("a", ""), ("\u200b\x07", "b"), ("x" * 1_000_000, "b"), ("d", "e")]
    folder = build(small(write_pairs(tmp_path / "a.jsonl", pairs), validation=0, test=0), tmp_path / "out", quiet=True)
    assert pairs_of(tmp_path / "out") == [("a", "b"), ("a", "c"), ("d", "e")]
    assert folder.about["left_out"] == {"duplicates": 1, "with an empty text": 3, "with a text over 100,000 characters": 1}


def test_snli_fraction_is_taken_once_and_the_limit_after_it(tmp_path):
    rows = [
        {"gold_label": "-" if n % 5 == 0 else "neutral", "sentence1": f"premise {n}", "sentence2": "x"} for n in range(500)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, held = str(tmp_path / "a.jsonl"), {"validation": 0, "test": 0}

    def taken(name, **changes):
        folder = build(small(source, **held, **changes), tmp_path / name, quiet=True)
        return {a for a, _ in pairs_of(tmp_path / name)}, folder.about["left_out"]

    half, left = taken("half", fraction=0.5)
    assert len(half) == 200 and left == {"without a label": 100, "not in the fraction, or over the limit": 200}
    limited, left = taken("limited", fraction=0.5, limit=30)
    assert len(limited) == 30 and limited < half and left["not in the fraction, or over the limit"] == 370
    assert len(taken("over", fraction=0.5, limit=300)[0]) == 200
    assert taken("seed", fraction=0.5, seed=1)[0] != half
    assert taken("again", fraction=0.5)[0] == half


@given(groups=st.lists(st.integers(0, 12), min_size=1, max_size=60), data=st.data(), seed=st.integers(0, 99))
def test_parts_share_no_group_and_have_their_sizes(groups, data, seed):
    group = np.array(groups)
    validation, test = (data.draw(st.integers(0, len(groups) // 3)) for _ in range(2))
    parts = split_groups(group, validation, test, seed)
    indices = [set(part.tolist()) for part in parts[:3]]
    assert len(set.union(*indices)) == sum(map(len, indices)) == len(groups) - parts.left_out
    members = [set(group[part].tolist()) for part in parts[:3]]
    assert not (members[0] & members[1] or members[0] & members[2] or members[1] & members[2])
    assert len(parts.validation) == validation
    assert len(parts.test) == test or not len(parts.train)
    again = split_groups(group, validation, test, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts[:3], again[:3], strict=True))


def test_choices_are_pinned():
    """A change here would build other datasets from the same command."""
    assert choose(10, 0.5, None, 3).tolist() == CHOSEN
    parts = split_groups(np.arange(12) // 2, 2, 4, 3)
    assert [part.tolist() for part in parts[:3]] == SPLIT


def test_no_premise_is_in_two_parts(tmp_path):
    pairs = [(f"premise {n // 3}", f"target {n}") for n in range(300)]
    folder = build(small(write_pairs(tmp_path / "a.jsonl", pairs), validation=20, test=31), tmp_path / "out", quiet=True)
    premises = [{a for a, _ in pairs_of(tmp_path / "out", part)} for part in PARTS]
    assert not (premises[0] & premises[1] or premises[0] & premises[2] or premises[1] & premises[2])
    assert folder.sizes["validation"] == 20 and folder.sizes["test"] == 31
    assert folder.about["left_out"] == {"over the size of a part whose premise they share": 3}
    assert sum(folder.sizes.values()) == 297


def test_premises_that_differ_in_case_width_or_invisible_characters_are_one(tmp_path):
    forms = ("the dog {}", "The DOG {}", "the\u200b dog {}", "the  dog\t{}", "\uff54he dog {}")
    pairs = [(form.format(n), f"target {k}") for n in range(40) for k, form in enumerate(forms)]
    build(small(write_pairs(tmp_path / "a.jsonl", pairs), validation=20, test=20), tmp_path / "out", quiet=True)
    numbers = [{a.split()[-1] for a, _ in pairs_of(tmp_path / "out", part)} for part in PARTS]
    assert [len(part) for part in numbers] == [32, 4, 4]


def test_held_out_sources_keep_their_pairs(tmp_path):
    train = write_pairs(tmp_path / "train.jsonl", [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")])
    dev = write_pairs(tmp_path / "dev.jsonl", [("a", "1"), ("b", "9"), ("v", "1")])
    test = write_pairs(tmp_path / "test.jsonl", [("b", "8"), ("t", "1")])
    folder = build(small(train, validation=dev, test=test), tmp_path / "out", quiet=True)
    assert pairs_of(tmp_path / "out", "test") == [("b", "8"), ("t", "1")]
    assert pairs_of(tmp_path / "out", "validation") == [("a", "1"), ("v", "1")]
    assert pairs_of(tmp_path / "out", "train") == [("c", "3"), ("d", "4"), ("e", "5")]
    assert folder.about["left_out"] == {"duplicates": 1, "with a premise of a held-out source": 2}


def test_a_killed_build_goes_on_and_gives_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "energy_flow_mlx.dataset", "build", "builtin:3000", "--dim", "512", "--shard-rows", "200"]
    out = tmp_path / "out"
    process = subprocess.Popen([*command, "--to", str(out), "--quiet"])
    deadline = time.monotonic() + 120
    while not (out / "rows-00003.safetensors").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "dataset.json").exists()
    with pytest.raises(FileNotFoundError, match=r"dataset.json: no such file; a finished build writes it"):
        DatasetFolder(out)
    (out / ".rows-00009.1.new.safetensors").write_bytes(b"half")  # as the kill leaves a shard that was being written
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("rows-*")}
    assert 4 <= len(kept) < 29
    with pytest.raises(DataError, match="holds an unfinished build with other settings"):
        build(Settings(sources=("builtin:3000",), dim=512, shard_rows=200, seed=1), out, quiet=True)
    settings = Settings(sources=("builtin:3000",), dim=512, shard_rows=200)
    build(settings, out, quiet=True)
    build(settings, tmp_path / "whole", quiet=True)
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


def test_a_finished_folder_is_kept_and_another_is_not_overwritten(tmp_path):
    source = write_pairs(tmp_path / "a.jsonl", [(f"a{n}", "b") for n in range(30)])
    build(small(source), tmp_path / "out", quiet=True)
    before = contents(tmp_path / "out")
    build(small(source), tmp_path / "out", quiet=True)
    assert contents(tmp_path / "out") == before
    with pytest.raises(DataError, match="holds a dataset of other settings or sources"):
        build(small(source, seed=1), tmp_path / "out", quiet=True)
    write_pairs(tmp_path / "a.jsonl", [(f"a{n}", "c") for n in range(30)])
    with pytest.raises(DataError, match="holds a dataset of other settings or sources"):
        build(small(source), tmp_path / "out", quiet=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="mine: exists and is not empty"):
        build(small(source), tmp_path / "mine", quiet=True)


def test_two_builds_do_not_share_a_folder(tmp_path):
    source = write_pairs(tmp_path / "a.jsonl", [(f"a{n}", "b") for n in range(30)])
    with locked(tmp_path / "out"), pytest.raises(BlockingIOError, match=f"out is in use by process {os.getpid()} on .*: wait for it"):
        build(small(source), tmp_path / "out", quiet=True)
    build(small(source), tmp_path / "out", quiet=True)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    source = write_pairs(tmp_path / "a.jsonl", [(f"a{n}", "b") for n in range(30)])
    assert build(small(source, validation=0, test=0), tmp_path / "out", quiet=True).sizes["train"] == 30
    assert "this file system has no locks (No locks available)" in capsys.readouterr().err


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".build.json"]], ids=["empty", "no plan yet", "half a plan"])
def test_what_a_build_killed_at_its_start_leaves_is_taken(tmp_path, left):
    out = tmp_path / "out"
    out.mkdir()
    for name in left:
        (out / name).write_text('{"plan": "')
    source = write_pairs(tmp_path / "a.jsonl", [(f"a{n}", "b") for n in range(30)])
    with pytest.raises(ValueError, match="no training pairs remain"):
        build(small(source, test=30), out, quiet=True)
    assert not list(out.iterdir())
    folder = build(small(source), out, quiet=True)
    assert {path.name for path in out.iterdir()} == {*folder.about["files"], "dataset.json"}


def test_the_plan_of_a_build_that_goes_on_is_not_written_again(tmp_path):
    """A kill that cut it off would let another plan go on with these shards."""
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "out", "plan", lambda: True) as note:
            note("teacher", "one")
            changed = (tmp_path / "out" / PLAN).stat().st_mtime_ns
            os.utime(tmp_path / "out" / PLAN, ns=(0, 0))
            raise KeyboardInterrupt
    assert changed == 0


def test_a_refused_build_leaves_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "target": "b"}\nnot json\n')
    with pytest.raises(DataError, match="a.jsonl: line 2: is not JSON"):
        build(small(str(tmp_path / "a.jsonl")), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    folder = build(small(str(tmp_path / "a.jsonl"), skip_bad=True), tmp_path / "out", quiet=True)
    assert folder.about["left_out"] == {"not JSON": 1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": 5, "test": 25}, "no training pairs remain: 30 pairs, test 25, validation 5"),
        ({"fraction": 0.0}, "fraction must be above 0 and at most 1, got 0.0"),
        ({"fraction": 1.5}, "fraction must be above 0"),
        ({"limit": 0}, "limit must be an integer of 1 or more, got 0"),
        ({"validation": -1}, "validation must be an integer of 0 or more, got -1"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"sources": ()}, "sources must name at least one"),
        ({"sources": ("builtin:x",)}, "must be written builtin:COUNT, got 'builtin:x'"),
        ({"sources": ("builtin:" + "9" * 5000,)}, "must be written builtin:COUNT, got 'builtin:9999"),
        ({"sources": ("hub:noslash",)}, "must be written hub:OWNER/NAME"),
    ],
)
def test_refusals(tmp_path, changes, words):
    source = write_pairs(tmp_path / "a.jsonl", [(f"a{n}", "b") for n in range(30)])
    with pytest.raises(ValueError, match=words):
        build(small(**{"sources": (source,), **changes}), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_not_there_is_refused_by_its_path(tmp_path):
    source = write_pairs(tmp_path / "a.jsonl", [(f"a{n}", "b") for n in range(30)])
    with pytest.raises(FileNotFoundError, match="teacher='/no/such/teacher': no such folder"):
        build(small(sources=(source,), teacher="/no/such/teacher"), tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_embeddings_that_came_with_a_source_are_kept(tmp_path):
    random = np.random.default_rng(0)
    rows = random.normal(size=(40, 2, 6)).astype(np.float32)
    given = [Record(f"a{n}", f"b{n}", None, None, rows[n, 0], rows[n, 1]) for n in range(40)]
    write_file(tmp_path / "a.safetensors", placed(given))
    folder = build(small(str(tmp_path / "a.safetensors"), dim=None, validation=5, test=5), tmp_path / "out", quiet=True)
    assert folder.dim == 6 and folder.about["teacher"] is None and folder.about["normalised"] is False
    for _, record in read_folder(tmp_path / "out"):
        number = int(record.input[1:])
        assert record.target == f"b{number}"
        np.testing.assert_array_equal([record.input_embedding, record.target_embedding], rows[number])
    # A folder is a source too.
    build(small(str(tmp_path / "out"), dim=None, validation=5, test=5), tmp_path / "again", quiet=True)
    assert Counter(pairs_of(tmp_path / "again")) == Counter((f"a{n}", f"b{n}") for n in range(40))


def test_embeddings_of_two_kinds_need_the_teachers_name_and_one_size(tmp_path):
    write_file(tmp_path / "a.jsonl", placed([Record(f"a{n}", target_embedding=np.ones(6, np.float32)) for n in range(30)]))
    source = str(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="embeddings from the sources: 1, but other texts have none: --teacher must name"):
        build(small(source, dim=None), tmp_path / "out", quiet=True)
    with pytest.raises(DataError, match="embedding sizes differ: the sources' 6, the teacher's 16, --dim 16"):
        build(small(source, teacher="builtin"), tmp_path / "out", quiet=True)
    folder = build(small(source, teacher="builtin", dim=None), tmp_path / "out", quiet=True)
    assert folder.dim == 6 and folder.about["given_embeddings"] == 1
    write_file(tmp_path / "b.jsonl", placed([Record("x", target_embedding=np.ones(5, np.float32))]))
    with pytest.raises(DataError, match=r"b.jsonl: line 1: has an embedding of 5 numbers, other sources 6"):
        build(small(source, str(tmp_path / "b.jsonl"), teacher="builtin"), tmp_path / "two", quiet=True)


def test_tokens_are_kept_beside_their_tokeniser_alone(tmp_path):
    tokeniser = WordPieceTokeniser.train(["one two three four five"], 60)
    tokeniser.save(tmp_path / "tokenizer.json")
    ids = [tokeniser.encode([text], 8) for text in ["one two", "three four five"] * 10]
    target = np.ones(4, np.float32)
    given = [
        Record(None, None, tokens.input_ids[0].astype(np.uint32), tokens.attention_mask[0].astype(np.uint8), None, target * n)
        for n, tokens in enumerate(ids, 1)
    ]
    write_file(tmp_path / "a.efb1", placed(given))
    source, held = str(tmp_path / "a.efb1"), {"dim": None, "teacher": "builtin", "validation": 0, "test": 0}
    with pytest.raises(DataError, match=r"a.efb1: byte 12: has only tokens: name their tokenizer.json with --tokenizer"):
        build(small(source, **held), tmp_path / "out", quiet=True)
    folder = build(small(source, tokeniser=str(tmp_path / "tokenizer.json"), **held), tmp_path / "out", quiet=True)
    assert {a for a, _ in pairs_of(tmp_path / "out")} == {"one two", "three four five"}
    for pair, record in enumerate(given):
        np.testing.assert_array_equal(folder.tokens(pair)[0], record.input_ids)
        np.testing.assert_array_equal(folder.tokens(pair)[1], record.attention_mask)
    write_file(tmp_path / "b.efb1", placed([given[0]._replace(input_ids=np.array([60], np.uint32), attention_mask=np.ones(1, np.uint8))]))
    with pytest.raises(DataError, match="holds the id 60, the tokeniser has"):
        build(small(str(tmp_path / "b.efb1"), tokeniser=str(tmp_path / "tokenizer.json"), **held), tmp_path / "bad", quiet=True)
    texts = [record._replace(input=f"text {n}") for n, record in enumerate(given)]
    write_file(tmp_path / "c.jsonl", placed(texts))
    folder = build(small(str(tmp_path / "c.jsonl"), **held), tmp_path / "texts", quiet=True)
    assert folder.tokens(0) is None
    assert folder.about["left_out"] == {"sets of tokens without --tokenizer (their texts are tokenised again)": 20}


def test_a_teacher_that_gives_nan_is_refused(tmp_path, monkeypatch):
    class Teacher(HashedNgramTeacher):
        def embed(self, texts):
            return np.where([[text == "bad"] for text in texts], np.nan, super().embed(texts)).astype(np.float32)

    monkeypatch.setattr(build_module, "open_teacher", lambda spec, dim, **options: Teacher(dim))
    source = write_pairs(tmp_path / "a.jsonl", [("good", "bad"), ("a", "b")])
    with pytest.raises(DataError, match="the teacher gave NaN or infinity for the text 'bad'"):
        build(small(source, validation=0, test=0), tmp_path / "out", quiet=True)


def test_labels_and_columns_reach_the_files(tmp_path):
    rows = [("entailment", "a", "b"), ("neutral", "c", "d"), ("-", "e", "f")]
    lines = ["gold_label\tsentence1\tsentence2", *("\t".join(row) for row in rows)]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    settings = small(str(tmp_path / "a.txt"), validation=0, test=0, selection=Selection(labels=("entailment",)))
    assert pairs_of(build(settings, tmp_path / "out", quiet=True).path) == [("a", "b")]


def test_hub_files_by_part(tmp_path, monkeypatch):
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "snapshot" / "data").mkdir(parents=True)
    for part in ("train", "validation"):
        write_pairs(tmp_path / "snapshot" / "data" / f"{part}-0.jsonl", [(f"{part} {n}", "b") for n in range(20)])
    settings = small("hub:me/pairs@v1:train", validation="hub:me/pairs@v1:validation", test=2)
    folder = build(settings, tmp_path / "out", quiet=True)
    assert folder.sizes == {"train": 18, "validation": 20, "test": 2}
    assert (asked["repository"], asked["revision"], asked["repo_type"]) == ("me/pairs", "v1", "dataset")
    with pytest.raises(DataError, match="hub:me/pairs:test: has no .parquet"):
        build(small("hub:me/pairs:test"), tmp_path / "none", quiet=True)


def cached(tmp_path, monkeypatch, *names: str) -> None:
    """A hub that is not reached, and files of an earlier download."""

    def download(repository, *, local_files_only=False, **options):
        if local_files_only:
            return str(tmp_path / "snapshot")
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    (tmp_path / "snapshot").mkdir()
    for name in names:
        write_pairs(tmp_path / "snapshot" / name, [(f"{name} {n}", "b") for n in range(20)])


def test_without_network_a_cache_that_lacks_shards_is_refused(tmp_path, monkeypatch):
    cached(tmp_path, monkeypatch, "train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl", "test-00000-of-00001.jsonl")
    with pytest.raises(DataError, match="2 of 3 files are in the cache; missing train-00001-of-00003.jsonl"):
        build(small("hub:me/pairs"), tmp_path / "out", quiet=True)


def test_without_network_a_cache_is_used_with_a_warning(tmp_path, monkeypatch):
    cached(tmp_path, monkeypatch, "train-00000-of-00001.jsonl")
    with pytest.warns(UserWarning, match=r"hub:me/pairs: the hub was not reached \(no route\); used are the 1 files"):
        assert sum(build(small("hub:me/pairs"), tmp_path / "out", quiet=True).sizes.values()) == 20


def test_without_network_the_hub_says_what_to_download(tmp_path, monkeypatch):

    def download(repository, **options):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(DataError, match=r"cannot be downloaded \(OSError: no route\)[^~]*hf download me/pairs --repo-type dataset --revision v1"):
        build(small("hub:me/pairs@v1"), tmp_path / "out", quiet=True)


CHOSEN = [0, 1, 4, 7, 9]
SPLIT = [[6, 7, 8, 9, 10, 11], [0, 1], [2, 3, 4, 5]]
