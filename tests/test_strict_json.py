"""JSON that every reader takes: no NaN, no Infinity; and what other programs write is read."""

import ast
import json
import math
from pathlib import Path

import pytest

from energy_flow_mlx.strict_json import parse_json, read_json, to_json, with_numbers, write_json

PACKAGE = Path(__file__).parents[1] / "energy_flow_mlx"
# Its rows are checked to be finite, and it is the one that does not escape; the script stands alone.
OTHERS = {"strict_json.py", "dataset/formats/jsonl.py", "export_torch_checkpoint.py"}


def test_numbers_that_are_not_finite_are_written_as_words_and_come_back(tmp_path: Path) -> None:
    values = {"a": [math.inf, (-math.inf, 1.5)], "b": {"c": math.nan}, "d": "NaN?"}
    write_json(tmp_path / "a.json", values)
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "a": ["Infinity", ["-Infinity", 1.5]], "b": {"c": "NaN"}, "d": "NaN?",
    }  # fmt: skip
    back = with_numbers(read_json(tmp_path / "a.json"))
    assert back["a"] == [math.inf, [-math.inf, 1.5]] and math.isnan(back["b"]["c"]) and back["d"] == "NaN?"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_of_json_is_read(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"ä": NaN}', encoding=encoding)
    assert read_json(tmp_path / "a.json") == {"ä": "NaN"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\xff", b"\x80", b"[" * 100_000, b"1" * 5000])
def test_other_files_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json: (does not parse|holds a)"):
        read_json(tmp_path / "a.json")


def test_equal_values_give_equal_texts() -> None:
    assert to_json({"b": 1, "a": 2}, indent=None, sort_keys=True) == '{"a": 2, "b": 1}'
    assert parse_json("1") == 1


def test_json_is_written_and_read_in_one_place() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import) and "json" in [alias.name for alias in node.names]
    }
    assert users == OTHERS


def test_the_committed_model_is_strict() -> None:
    for path in (PACKAGE.parent / "weights/golden").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
