"""JSONL: one object per line.

    {"text": input, "target": [E numbers], "input_ids": [...], "attention_mask": [...]}     as in the PyTorch code
    {"text": input, "target": text}                                                         a pair of texts
    {"sentence1": input, "sentence2": target, "gold_label": label}                          SNLI

`target_text` and `input_embedding` store the fields that the first form lacks.
"""

import json
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
    for place, line in read_lines(path, faults):
        if not line.strip():
            continue
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


def _parse(line: str) -> Any:
    return json.loads(line, parse_constant=float)  # NaN and Infinity are parsed; `check_records` refuses them
