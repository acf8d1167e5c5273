"""JSONL: one object per line.

    {"text": input, "target": [E numbers], "input_ids": [...], "attention_mask": [...]}     as in the PyTorch code
    {"text": input, "target": text}                                                         a pair of texts
    {"sentence1": input, "sentence2": target, "gold_label": label}                          SNLI

`target_text` and `input_embedding` store the fields that the first form lacks.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..records import DataError, Faults, Placed, Record
from .lines import read_lines
from .rows import Selection, to_record

HOLDS = frozenset(Record._fields)


def read(path: Path, faults: Faults, selection: Selection) -> Iterator[Placed]:
    """Iterate over the records of a JSONL file, skipping blank lines. Raises as `read_lines` and `to_record`."""
    first = True
    for place, line in read_lines(path, faults):
        if not line.strip():
            continue
        if first:
            _check_kind(path, line.strip())
            first = False
        try:
            row = _parse(line)
            if not isinstance(row, dict):
                raise place.error("not an object", f"must be a JSON object, got {type(row).__name__}")
            record = to_record(place, row, selection, faults)
        except DataError as error:
            faults.meet(error)
            continue
        except (ValueError, RecursionError) as error:
            faults.meet(place.error("not JSON", f"is not JSON: {error}"))
            continue
        if record is not None:
            yield place, record


def write(path: Path, records: Iterable[Placed]) -> int:
    """Write records; returns their number. Numbers are written with enough digits to restore the same float32."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for _, record in records:
            file.write(json.dumps(_row(record), ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def _row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {
        "text": record.input,
        "target": record.target if record.target_embedding is None else record.target_embedding,
        "target_text": None if record.target_embedding is None else record.target,
        "input_ids": record.input_ids,
        "attention_mask": record.attention_mask,
        "input_embedding": record.input_embedding,
    }
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in row.items()
        if value is not None
    }


def _check_kind(path: Path, line: str) -> None:
    """Refuse a file of JSON that is no JSONL, by its first line."""
    kind = {"[": "a JSON array", "{": "a JSON object over several lines"}.get(line[0])
    try:
        row = json.loads(line)
        array = isinstance(row, list) and bool(row) and all(isinstance(item, dict) for item in row)
    except (ValueError, RecursionError):
        array = line in ("[", "{") or line.startswith("[{")
    if kind and array:
        raise DataError(
            f"{path}: is {kind}; JSONL has one object a line, for example from jq -c '.[]' {path.name} > {path.stem}.jsonl", "not JSONL"
        )


def _parse(line: str) -> Any:
    # NaN and Infinity are parsed; `check_records` refuses them.
    return json.loads(line, parse_constant=float, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. JSON leaves open which of two equal names holds, and Python takes the last in silence."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError(f"it has the name {next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)!r} twice")
    return values
