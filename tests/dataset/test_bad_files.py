"""Damaged files: a DataError that says where, or a counted skip; never another error, and no allocation on a file's word."""

import json
import struct
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from dataset.files import efb, full_records, placed, read
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from energy_flow_mlx.dataset.formats import write_file
from energy_flow_mlx.dataset.records import DataError, Faults

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet", ".efb1", ".efb2", ".pt", ".safetensors")
FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def refusal(path, content, faults=None) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path, faults)
    text = str(caught.value)
    assert text.startswith(str(path))
    return text.removeprefix(f"{path}: ")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file of each format."""
    folder = tmp_path_factory.mktemp("good")
    for suffix in (".jsonl", ".efb1", ".efb2", ".pt", ".safetensors"):
        write_file(folder / f"a{suffix}", placed(full_records(4, dim=3)))
    (folder / "a.csv").write_text('premise,hypothesis\n"a, b",c\nd,"e ""f"""\n')
    (folder / "a.tsv").write_text("premise\thypothesis\na\tb\nc\td\n")
    table = pyarrow.table({"text": ["a", "b"], "target": [[1.0, 2.0], [3.0, 4.0]]})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return {suffix: (folder / f"a{suffix}").read_bytes() for suffix in SUFFIXES}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_empty_file(tmp_path, suffix):
    assert refusal(tmp_path / f"a{suffix}", b"") == "is empty"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=f"a{suffix}: no such file"):
        read(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".efb1", ".efb2"])
def test_efb_cut_off_at_every_byte(tmp_path, good, suffix):
    content = good[suffix]
    for size in range(1, len(content)):
        text = refusal(tmp_path / f"a{suffix}", content[:size])
        assert text.startswith("byte ") and ("cut off" in text or "bytes or more" in text), size
    assert "byte " in refusal(tmp_path / f"a{suffix}", content + b"\0")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".parquet"])
def test_other_binary_files_cut_off_at_every_byte(tmp_path, good, suffix):
    content = good[suffix]
    for size in range(1, len(content), max(1, len(content) // 150)):
        refusal(tmp_path / f"a{suffix}", content[:size])


@pytest.mark.parametrize("magic", [b"EFB3", b"efb1", b"\0\0\0\0", b"PK\3\4"])
def test_wrong_magic(tmp_path, magic):
    text = refusal(tmp_path / "a.efb1", efb(1, 1, b"\0" * 12, magic))
    assert text == f"byte 0: must start with EFB1 or EFB2, got {magic!r}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (efb(2**32 - 1, 2**32 - 1, b"\0" * 100), "says 4294967295 samples of 4294967295 numbers"),
        (efb(2**32 - 1, 1, b"\0" * 100), "need 34359738360 bytes or more; 100 follow"),
        (efb(1, 2**31, b"\0" * 100), "says 1 samples of 2147483648 numbers"),
        (efb(1, 1, struct.pack("<I", 2**32 - 1) + b"\0" * 100), "byte 16: is cut off: 4294967295 tokens with their mask take"),
        (efb(1, 1, struct.pack("<I", 2**32 - 1) + b"\0" * 100, b"EFB2", 2), "byte 20: is cut off: the text takes 4294967295"),
        (efb(0, 5, b""), "says 0 samples"),
        (efb(1, 0, b"\0" * 4), "of 0 numbers"),
        (efb(1, 1, b"\0" * 9, b"EFB2", 8), "byte 12: unknown flags 0x8; accepted are bits 0, 1 and 2"),
    ],
)
def test_absurd_counts_are_refused_before_anything_is_allocated(tmp_path, content, words):
    tracemalloc.start()
    text = refusal(tmp_path / "a.efb2", content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in text
    assert peak < 2**20


def test_absurd_safetensors_headers(tmp_path):
    def file(header: object) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text

    huge = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    path = tmp_path / "a.safetensors"
    assert "cut off" in refusal(path, file({"input_embeddings": huge, "target_embeddings": huge}))
    assert "safetensors" in refusal(path, struct.pack("<Q", 2**63) + b"{}")
    assert "does not parse" in refusal(path, file({"input_embeddings": 5}))
    assert "has no input_embeddings, target_embeddings" in refusal(path, file({}))


def test_nan_is_refused_with_its_place(tmp_path):
    nan, fine = struct.pack("<f", np.nan), struct.pack("<f", 1.0)
    sample = struct.pack("<I", 0)
    content = efb(2, 1, sample + fine + sample + nan)
    assert refusal(tmp_path / "a.efb1", content) == "byte 20: target_embedding holds NaN or infinity"
    faults = Faults(skip=True)
    assert len(read(tmp_path / "a.efb1", faults)) == 1
    assert faults.counts == {"not finite": 1}
    for value in ("NaN", "Infinity", "-Infinity", "1e400", "1e39"):
        content = f'{{"text": "a", "target": [1.0]}}\n{{"text": "b", "target": [{value}]}}\n'.encode()
        assert refusal(tmp_path / "a.jsonl", content) == "line 2: target_embedding holds NaN or infinity"


def test_mixed_sizes_are_refused_with_both(tmp_path):
    content = b'{"text": "a", "target": [1, 2]}\n{"text": "b", "target": [1, 2, 3]}\n'
    assert refusal(tmp_path / "a.jsonl", content) == "line 2: target_embedding has 3 numbers, earlier ones have 2"
    content = b'{"text": "a", "target": [1, 2], "input_embedding": [1]}\n'
    assert refusal(tmp_path / "a.jsonl", content) == "line 1: target_embedding has 2 numbers, earlier ones have 1"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "a", "target": "b"}\n{"text": "\xff", "target": "b"}\n', "line 2: is not UTF-8 at byte 10"),
        ("a.csv", b"premise,hypothesis\na,b\n\xc3,d\n", "line 3: is not UTF-8 at byte 0"),
        ("a.tsv", b"premise\thypothesis\na\t\xed\xa0\x80\n", "line 2: is not UTF-8 at byte 2"),
        ("a.jsonl", b'{"text": "\\ud800", "target": "b"}\n', "line 1: the input text is not valid Unicode"),
        ("a.efb2", efb(1, 1, struct.pack("<I", 2) + b"a\xff" + struct.pack("<f", 1), b"EFB2", 2), "byte 16: the text is not UTF-8 at its byte 1"),
    ],
)
def test_broken_utf8(tmp_path, name, content, words):
    assert words in refusal(tmp_path / name, content)


def test_skipping_counts_and_reads_on(tmp_path):
    lines = [
        b'{"text": "a", "target": [1, 2]}', b'{"text": "\xff", "target": [1, 2]}', b"not json", b"[1]", b"",
        b'{"text": "b", "target": [1]}', b'{"target": [1, 2]}', b'{"text": 5, "target": [1, 2]}',
        b'{"text": "c", "target": ["x", 2]}', b'{"text": "c", "target": []}', b'{"text": "c", "target": [[1], [2]]}',
        b'{"text": "c", "target": [1, 2], "input_ids": [1, -1]}', b'{"text": "c", "target": [1, 2], "input_ids": 5}',
        b'{"text": "c", "target": [1, 2], "input_ids": [1, 2], "attention_mask": [1]}',
        b'{"text": "c", "target": [1, 2], "input_ids": [1], "attention_mask": [2]}',
        b"[" * 100_000, b'{"text": "z", "target": [3, 4]}',
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    faults = Faults(skip=True)
    assert [record.input for record in read(path, faults)] == ["a", "z"]
    assert faults.counts == {
        "broken UTF-8": 1, "not JSON": 2, "not an object": 1, "embedding size": 1, "no input": 1, "not a text": 1,
        "not a number": 4, "bad tokens": 1, "token mask": 2,
    }  # fmt: skip
    sample = struct.pack("<I", 1)
    broken = sample + b"\xff" + sample + struct.pack("<I", 7) + b"\1" + struct.pack("<f", 1)
    whole = sample + b"x" + sample + struct.pack("<I", 7) + b"\1" + struct.pack("<f", 1)
    path = tmp_path / "a.efb2"
    path.write_bytes(efb(3, 1, whole + broken + whole, b"EFB2", 3))
    faults = Faults(skip=True)
    assert [record.input for record in read(path, faults)] == ["x", "x"]
    assert faults.counts == {"broken UTF-8": 1}


def test_a_target_that_is_not_normalised_although_the_file_says_so(tmp_path):
    text = refusal(tmp_path / "a.efb2", efb(1, 2, struct.pack("<ff", 1, 1), b"EFB2", 4))
    assert text.startswith("byte 16: the file is flagged as normalised, this target has length 1.41421")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".efb2"])
def test_a_text_of_a_million_characters_is_read(tmp_path, suffix):
    long, path = "ä" * 1_000_000, tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps({"text": long, "target": "b"}) + "\n")
    elif suffix == ".efb2":
        data = long.encode()
        path.write_bytes(efb(1, 1, struct.pack("<I", len(data)) + data + struct.pack("<f", 1), b"EFB2", 2))
    else:
        tab = "," if suffix == ".csv" else "\t"
        path.write_text(f"premise{tab}hypothesis\n{long}{tab}b\n")
    assert read(path)[0].input == long


def test_a_line_without_an_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("energy_flow_mlx.dataset.formats.lines.MAX_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * 5000 + b'\n{"text": "a", "target": "b"}\n')
    with pytest.raises(DataError, match="line 1: is over 1000 bytes long"):
        read(path)
    faults = Faults(skip=True)
    assert [record.input for record in read(path, faults)] == ["a"]
    assert faults.counts == {"line too long": 1}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b'premise,hypothesis\na,"b\n', "is not CSV"),
        ("a.csv", b"premise,hypothesis\na,b,c\n", "line 2: has 3 fields, the header has 2"),
        ("a.csv", b"premise,hypothesis\n", "holds no records"),
        ("a.tsv", b"one\ttwo\n", "line 1: names the columns one, two"),
        ("a.jsonl", b"\n\n", "holds no records"),
        ("a.parquet", b"PAR1 and no more", "is damaged or not a Parquet file"),
        ("a.pt", b"no pickle", "is not a PyTorch file"),
    ],
)
def test_other_faults(tmp_path, name, content, words):
    assert words in refusal(tmp_path / name, content)


def survives(path, content: bytes) -> None:
    """Reading ends well or with the readers' own error, whether faults stop it or are skipped."""
    path.write_bytes(content)
    for skip in (False, True):
        try:
            read(path, Faults(skip))
        except DataError as error:
            assert str(error).startswith(str(path))


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(content=st.binary(min_size=1, max_size=200))
@FUZZ
def test_any_bytes(tmp_path, suffix, content):
    survives(tmp_path / f"a{suffix}", content)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
@FUZZ
def test_good_files_with_changed_bytes(tmp_path, good, suffix, data):
    content = bytearray(good[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        if not content:
            return
    survives(tmp_path / f"a{suffix}", bytes(content))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("text", "target", "target_text", "input_ids", "attention_mask", "input_embedding", "sentence1", "gold_label", "label", "premise")


@given(rows=st.lists(JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5), min_size=1, max_size=4))
@example(rows=[{"text": "a", "target": [10**400]}])
@example(rows=[{"text": "a", "input_ids": [2**40], "target": [True]}])
@FUZZ
def test_any_json(tmp_path, rows):
    survives(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
