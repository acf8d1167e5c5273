"""scripts/make_sentences.py on a made-up WordNet and made-up packages of verses, up to a data set of copies."""

from pathlib import Path

import make_sentences
import pytest
from make_glosses import FILES
from make_sentences import main, split
from test_make_glosses import LICENCE, line
from test_make_verses import install, packed, read
from text_pairs import TextPair

from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.dataset.open import open_data


@pytest.fixture()
def wordnet(tmp_path: Path) -> Path:
    for name in FILES:
        lines = [line(n, f'a thing of the kind {name[5:]} n{n}; "it is of kind n{n}, {name}"; "too short"') for n in range(1, 11)]
        (tmp_path / name).write_text(LICENCE + "".join(lines))
    return tmp_path


@pytest.fixture()
def verses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, package in enumerate(make_sentences.PACKAGES):
        texts = [(1001001, f"In version {number} they all go, they said: 'and none of them came back.'"), (1001002, "Then they all went home again.")]
        install(tmp_path, package, packed(texts))
    monkeypatch.syspath_prepend(str(tmp_path))


def test_definitions_examples_and_clauses(wordnet, verses, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(make_sentences, "HELD_OUT", 6)
    assert main(["--wordnet", str(wordnet), "--verses", "--to", str(tmp_path / "out")]) == 0
    parts = read(tmp_path / "out")
    rows = [row for part in parts.values() for row in part]
    assert all(row["input"] == row["target"] for row in rows)
    clauses = {"In version 0 they all go", "In version 1 they all go", "and none of them came back.", "Then they all went home again."}
    expected = {text for name in FILES for n in range(1, 11) for text in (f"a thing of the kind {name[5:]} n{n}", f"it is of kind n{n}, {name}")}
    assert len(rows) == len({row["input"] for row in rows}) and {row["input"] for row in rows} == expected | clauses
    keys = [{row["key"] for row in part} for part in parts.values()]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert 6 <= len(parts["test"]) <= 8 and 6 <= len(parts["validation"]) <= 8
    told = capsys.readouterr().out
    assert "left out: 42 of under 5 or over 15 words" in told  # the examples, and "they said" twice
    assert "left out: 2 that are there already" in told  # the second Bible's

    sources = {name: str(tmp_path / "out" / f"{name}.jsonl") for name in parts}
    build(Settings(sources=(sources["train"],), validation=sources["validation"], test=sources["test"], dim=12), tmp_path / "set", quiet=True)
    data = open_data(str(tmp_path / "set"), train=1, validation=1, test=1, seed=0, dim=12, vocab_size=200, max_length=20)
    assert [len(part) for part in data[:3]] == [len(parts[name]) for name in ("train", "validation", "test")]


def test_what_is_equal_but_for_case_is_one_sentence() -> None:
    sentences = {1: ["A b", "c"], 2: ["a  B", "d"], 3: ["C", "a b"]}
    for seed in range(5):
        parts, left_out = split(sentences, 1, seed)
        texts = [pair.input.lower().replace("  ", " ") for part in parts.values() for pair in part]
        assert sorted(texts) == ["a b", "c", "d"] and left_out == 3
    assert split({1: ["a"], 2: ["b"]}, 1, 0) == split({1: ["a"], 2: ["b"]}, 1, 0)
    assert TextPair(1, "a", "a") in [pair for part in split({1: ["a"]}, 1, 0)[0].values() for pair in part]


def test_errors(tmp_path, capsys) -> None:
    assert main(["--to", str(tmp_path / "out")]) == 2
    assert "error: --wordnet FOLDER, --verses or both must say" in capsys.readouterr().err
    assert main(["--wordnet", str(tmp_path), "--to", str(tmp_path / "out")]) == 2
    assert "data.noun" in capsys.readouterr().err
