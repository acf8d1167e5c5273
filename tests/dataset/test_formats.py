"""Every format gives back what it was given, and says what it cannot hold."""

import csv
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from dataset.files import assert_same, full_records, placed, read, records
from hypothesis import HealthCheck, given, settings

from energy_flow_mlx import export_torch_checkpoint as script
from energy_flow_mlx.dataset.convert import convert
from energy_flow_mlx.dataset.formats import HOLDS, read_file, write_file
from energy_flow_mlx.dataset.formats.rows import Selection
from energy_flow_mlx.dataset.origin import Origin
from energy_flow_mlx.dataset.records import DataError, Faults, Record
from energy_flow_mlx.text.tokeniser import WordPieceTokeniser

SUFFIXES = {"jsonl": ".jsonl", "efb1": ".efb1", "efb2": ".efb2", "pt": ".pt", "safetensors": ".safetensors"}


def held(record: Record, form: str) -> Record:
    return Record(**{name: value for name, value in record._asdict().items() if name in HOLDS[form]})


@pytest.mark.parametrize("form", SUFFIXES)
@given(made=records())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_a_format_holds_comes_back(tmp_path, form, made):
    path = tmp_path / f"data{SUFFIXES[form]}"
    assert write_file(path, placed(made)) == len(made)
    assert_same([held(record, form) for record in made], read(path))


@pytest.mark.parametrize("first", SUFFIXES)
@pytest.mark.parametrize("second", SUFFIXES)
def test_conversion_keeps_what_both_hold_and_says_what_is_lost(tmp_path, first, second):
    made = full_records(9)
    start, end = tmp_path / f"start{SUFFIXES[first]}", tmp_path / f"end{SUFFIXES[second]}"
    write_file(start, placed(made))
    needs = {"pt": {"input_embedding"}, "safetensors": {"input_embedding"}, "efb1": {"input_ids"}}.get(second, set())
    if not needs <= HOLDS[first]:
        with pytest.raises(DataError, match="has no (embedding|tokens)"):
            convert(Origin(str(start)), end, Faults())
        assert not end.exists()
        return
    count, lost = convert(Origin(str(start)), end, Faults())
    assert count == 9
    assert_same([held(held(record, first), second) for record in made], read(end))
    gone = HOLDS[first] - HOLDS[second] - {"attention_mask"}
    assert lost == {name.replace("_", " "): 9 for name in gone}


def test_a_pack_keeps_its_origin_and_others_say_that_they_do_not(tmp_path):
    info = {"teacher": "distilbert", "count": 2, "nested": {"a": [1, 2.5]}}
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    pack = {"input_embeddings": rows, "target_embeddings": -rows, "text_pairs": [("a", "b"), ("c", "d")], "generation_info": info}
    torch.save(pack, tmp_path / "first.pt")
    convert(Origin(str(tmp_path / "first.pt")), tmp_path / "middle.safetensors", Faults())
    convert(Origin(str(tmp_path / "middle.safetensors")), tmp_path / "last.pt", Faults())
    again = torch.load(tmp_path / "last.pt", weights_only=True)
    assert again.pop("input_embeddings").equal(rows) and again.pop("target_embeddings").equal(-rows)
    assert again == {"text_pairs": [("a", "b"), ("c", "d")], "generation_info": info}
    _, lost = convert(Origin(str(tmp_path / "first.pt")), tmp_path / "a.jsonl", Faults())
    assert lost == {"generation info": 1}


def test_the_export_script_makes_the_pack_that_needs_no_torch(tmp_path, capsys, monkeypatch):
    rows = torch.arange(6, dtype=torch.float16).reshape(3, 2)
    pack = {"input_embeddings": rows, "target_embeddings": rows.double(), "text_pairs": [["ä", "b"], ["", "d"], ["e", "猫"]]}
    torch.save(pack, tmp_path / "pack.pt")
    assert script.main([str(tmp_path / "pack.pt"), str(tmp_path / "out")]) == 0
    assert "3 pairs of embeddings, with texts" in capsys.readouterr().out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as where torch is not installed
    made = read(tmp_path / "out" / "pack.safetensors")
    assert [(record.input, record.target) for record in made] == [("ä", "b"), ("", "d"), ("e", "猫")]
    np.testing.assert_array_equal([record.target_embedding for record in made], rows.float().numpy())
    with pytest.raises(DataError, match=r"pack.pt: a .pt pack needs torch: .*scripts/export_torch_checkpoint.py"):
        read(tmp_path / "pack.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_embeddings": None}, "target_embeddings must be a floating tensor"),
        ({"text_pairs": [("a", "b")]}, "text_pairs must be 2 pairs"),
        ({"text_pairs": [("a", "b"), ("c",)]}, "text_pairs must be 2 pairs"),
        ({"text_pairs": "ab"}, "text_pairs must be a list"),
        ({"target_embeddings": (2, 3)}, r"input_embeddings \[2, 2\] and target_embeddings \[2, 3\]"),
    ],
)
def test_a_pack_whose_parts_do_not_fit_is_refused(tmp_path, change, words):
    change = {name: torch.ones(value) if isinstance(value, tuple) else value for name, value in change.items()}
    torch.save({"input_embeddings": torch.ones(2, 2), "target_embeddings": torch.ones(2, 2), **change}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=words):
        read(tmp_path / "a.pt")


def test_a_pack_runs_no_code(tmp_path):

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"input_embeddings": torch.ones(2, 2), "target_embeddings": Evil()}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"a\.pt: holds io.open besides tensors and plain values"):
        read(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_csv_tsv_and_parquet_give_the_same_pairs(tmp_path):
    pairs = [("a man, sleeping", 'he said "no"'), ("ünï 猫", "two\nlines"), ("x", "y")]
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("id", "premise", "hypothesis"), *((str(n), *pair) for n, pair in enumerate(pairs))])
    assert [(record.input, record.target) for record in read(tmp_path / "a.csv")] == pairs
    flat = [pair for pair in pairs if "\n" not in pair[1]]
    (tmp_path / "a.tsv").write_text("sentence1\tsentence2\n" + "".join(f"{a}\t{b}\n" for a, b in flat))
    assert [(record.input, record.target) for record in read(tmp_path / "a.tsv")] == flat
    table = pyarrow.table({"premise": [a for a, _ in pairs], "hypothesis": [b for _, b in pairs], "more": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [(record.input, record.target) for record in read(tmp_path / "a.parquet")] == pairs


def test_columns_are_chosen_by_name_and_by_number(tmp_path):
    (tmp_path / "a.csv").write_text("first,second\na,b\nc,d\n")
    with pytest.raises(DataError, match=r"a.csv: line 1: names the columns first, second; needed are .*--columns"):
        read(tmp_path / "a.csv")
    named = [record[:2] for _, record in read_file(tmp_path / "a.csv", Faults(), Selection(("second", "first")))]
    assert named == [("b", "a"), ("d", "c")]
    numbered = [record[:2] for _, record in read_file(tmp_path / "a.csv", Faults(), Selection(("1", "2")))]
    assert numbered == [("first", "second"), ("a", "b"), ("c", "d")]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'energy-flow-mlx\[parquet\]'"):
        read(tmp_path / "a.parquet")


SNLI = [
    {"gold_label": "neutral", "sentence1": "A man sleeps.", "sentence2": "A man dreams.", "captionID": "1"},
    {"gold_label": "-", "sentence1": "A man sleeps.", "sentence2": "A man is tall."},
    {"gold_label": "entailment", "sentence1": "A dog runs.", "sentence2": "An animal moves."},
]


def test_snli_pairs_without_a_label_are_skipped_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SNLI))
    faults = Faults()
    assert [record.target for record in read(tmp_path / "a.jsonl", faults)] == ["A man dreams.", "An animal moves."]
    assert faults.counts == {"without a label": 1}
    faults = Faults()
    wanted = [record for _, record in read_file(tmp_path / "a.jsonl", faults, Selection(labels=("entailment",)))]
    assert [record.input for record in wanted] == ["A dog runs."]
    assert faults.counts == {"without a label": 1, "with label neutral": 1}
    (tmp_path / "b.jsonl").write_text('{"text": "a", "target": "b"}\n')
    with pytest.raises(DataError, match="line 1: has no gold_label or label, which --label needs"):
        list(read_file(tmp_path / "b.jsonl", Faults(), Selection(labels=("entailment",))))


def test_the_hub_writes_a_missing_label_as_minus_one(tmp_path):
    table = pyarrow.table({"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [-1, 0]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    faults = Faults()
    assert [record.input for record in read(tmp_path / "train.parquet", faults)] == ["b"]
    assert faults.counts == {"without a label": 1}


def test_efb2_says_whether_targets_have_length_one(tmp_path):
    unit = Record(target_embedding=np.array([0.6, 0.8], np.float32))
    write_file(tmp_path / "a.efb2", placed([unit, unit]))
    assert (tmp_path / "a.efb2").read_bytes()[12] == 4
    write_file(tmp_path / "a.efb2", placed([unit, Record(target_embedding=np.ones(2, np.float32))]))
    assert (tmp_path / "a.efb2").read_bytes()[12] == 0


def test_a_tokeniser_makes_the_missing_tokens_and_texts(tmp_path):
    tokeniser = WordPieceTokeniser.train(["a small cat sleeps", "a dog runs"], 60)
    tokeniser.save(tmp_path / "tokenizer.json")
    target = np.ones(3, np.float32)
    write_file(tmp_path / "a.jsonl", placed([Record(input="a small cat runs", target_embedding=target)]))
    convert(Origin(str(tmp_path / "a.jsonl")), tmp_path / "a.efb1", Faults(), str(tmp_path / "tokenizer.json"), 12)
    (tokens,) = read(tmp_path / "a.efb1")
    encoded = tokeniser.encode(["a small cat runs"], 12)
    count = int(encoded.attention_mask.sum())
    np.testing.assert_array_equal(tokens.input_ids, encoded.input_ids[0, :count])
    assert tokens.attention_mask.tolist() == [1] * count and count < 12
    convert(Origin(str(tmp_path / "a.efb1")), tmp_path / "b.jsonl", Faults(), str(tmp_path / "tokenizer.json"))
    assert read(tmp_path / "b.jsonl")[0].input == "a small cat runs"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.efb1"
    write_file(path, placed(full_records(2)))
    before = path.read_bytes()
    with pytest.raises(DataError, match="record 2: has no target embedding"):
        write_file(path, placed([full_records(1)[0], Record(input="x")]))
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["a.efb1"]


def test_endings_that_are_not_known_are_refused(tmp_path):
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(DataError, match=r"a.xyz: unknown extension '.xyz'; supported are .jsonl"):
        read(tmp_path / "a.xyz")
    with pytest.raises(DataError, match=r"cannot write '.csv' files; supported are .jsonl"):
        write_file(tmp_path / "a.csv", placed(full_records(1)))


ROWS = [("A", "B", -1.0), ("C", "D", 0.0), ("E", "F", 2.0), ("G", "H", None)]


def labelled(folder, suffix: str):
    """ROWS as pandas writes them: a column of whole numbers with a gap becomes floats."""
    path = folder / f"data{suffix}"
    if suffix == ".parquet":
        columns = zip(*ROWS, strict=True)
        pyarrow.parquet.write_table(pyarrow.table(dict(zip(("premise", "hypothesis", "label"), columns, strict=True))), path)
    elif suffix == ".jsonl":
        rows = [dict(zip(("premise", "hypothesis", "label"), row, strict=True)) for row in ROWS]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows).replace("null", "NaN"))
    else:
        mark = {".csv": ",", ".tsv": "\t"}[suffix]
        rows = [("premise", "hypothesis", "label"), *((a, b, "" if label is None else label) for a, b, label in ROWS)]
        path.write_text("".join(mark.join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_labels_that_became_floats_mean_what_they_meant(tmp_path, suffix):
    path, faults = labelled(tmp_path, suffix), Faults()
    assert [record.input for record in read(path, faults)] == ["C", "E", "G"]
    assert faults.counts == {"without a label": 1}
    for label in ("0", "0.0"):
        skipping = Faults(skip=True)
        assert [record.input for _, record in read_file(path, skipping, Selection(None, (label,)))] == ["C"]
        assert skipping.counts == {"without a label": 1, "with label 2": 1, "no label": 1}
    with pytest.raises(DataError, match="has the label 0, --label names entailment: labels here are numbers, 0 = entailment"):
        list(read_file(path, Faults(), Selection(None, ("entailment",))))


BAD = {
    # One faulty record among good ones, and the line or row that is named.
    "text behind a quote.csv": (b'premise,hypothesis\nA,B\n"C said" hi,D\nE,F\n', "line 3: is not CSV"),
    "open quote.csv": (b'premise,hypothesis\nA,B\nX,"Y\nE,F\n', "line 3: .*a quote that begins in this row is not closed"),
    "quote closed lines later.csv": (b'premise,hypothesis\nA,B\nX,"Y\nE,"F"\n', "line 3: is not CSV"),
    "quote that swallows a row.csv": (b'premise,hypothesis\nA,B\nX,"Y\nE,F\n",Z\n', "line 3: has 3 fields"),
    "too many fields.csv": (b"premise,hypothesis\nA,B\nX,Y,Z\nE,F\n", "line 3: has 3 fields"),
    "not utf-8.csv": (b"premise,hypothesis\nA,B\n\xff,Y\nE,F\n", "line 3: is not UTF-8"),
    "too few fields.tsv": (b"premise\thypothesis\nA\tB\nX\nE\tF\n", "line 3: has 1 fields"),
    "cut.jsonl": (b'{"text":"A","target":"B"}\n{"text":"X\n{"text":"E","target":"F"}\n', "line 2: is not JSON"),
    "a name twice.jsonl": (b'{"text":"A","target":"B"}\n{"text":"X","text":"Y","target":"Z"}\n{"text":"E","target":"F"}\n',
                           "line 2: is not JSON: it has the name 'text' twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_costs_itself_alone(tmp_path, name):
    content, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(path)
    faults = Faults(skip=True)
    kept = [record.input for record in read(path, faults)]
    # A row of a broken quote may leave its last line behind as a second fault; what is good is kept.
    assert kept == ["A", "E"] and sum(faults.counts.values()) == 1 + (name == "quote that swallows a row.csv")


def test_a_bad_row_of_parquet_costs_itself_alone(tmp_path):
    path = tmp_path / "data.parquet"
    ends = pyarrow.py_buffer(np.arange(4, dtype=np.int32).tobytes())
    broken = pyarrow.StringArray.from_buffers(3, ends, pyarrow.py_buffer(b"A\xffE"))
    pyarrow.parquet.write_table(pyarrow.table({"premise": broken, "hypothesis": ["B", "Y", "F"]}), path)
    with pytest.raises(DataError, match="row 2: premise is not UTF-8 at byte 0"):
        read(path)
    faults = Faults(skip=True)
    assert [record.input for record in read(path, faults)] == ["A", "E"] and faults.counts == {"broken UTF-8": 1}


def test_line_breaks_inside_csv_quotes_are_kept(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b'text,target\r\n"a\r\nb","c\rd\ne"\r\n')
    assert [tuple(record[:2]) for record in read(path)] == [("a\r\nb", "c\rd\ne")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'[\n{"text":"A","target":"B"}]\n', "is a JSON array; JSONL has one object a line"),
        ("a.jsonl", b'[{"text":"A","target":"B"}]', "is a JSON array; JSONL has one object a line"),
        ("a.jsonl", b'{\n"text":"A",\n"target":"B"}\n', "is a JSON object over several lines"),
        ("a.csv", b"premise;hypothesis\nA;B\n", "separated by semicolons, where a .csv file has commas"),
        ("a.csv", b"premise\thypothesis\nA\tB\n", "separated by tabs, .*rename it to .tsv"),
        ("a.tsv", b"premise,hypothesis\nA,B\n", "separated by commas, where a .tsv or .txt file has tabs; rename it to .csv"),
        ("a.csv", "premise,hypothesis\nA,B\n".encode("utf-16"), "looks like UTF-16"),
        ("a.jsonl", '{"text":"A","target":"B"}'.encode("utf-16-le"), "looks like UTF-16"),
        ("a.csv", b"text,target,text\nA,B,C\n", "several columns of the name text"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_a_file_of_another_kind_is_named(tmp_path, name, content, words, skip):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path / name, Faults(skip))
