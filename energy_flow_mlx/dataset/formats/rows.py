"""Converting rows of named values, as in JSONL, CSV, TSV and Parquet, to records."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..records import DataError, Faults, Place, Record
from . import snli

INPUT_NAMES = ("text", "input", *snli.INPUT_NAMES)
TARGET_NAMES = ("target_text", "target", *snli.TARGET_NAMES)
# All names that are read; others are ignored.
NAMES = (
    *INPUT_NAMES, *TARGET_NAMES, *snli.LABEL_NAMES, "input_ids", "attention_mask", "input_embedding", "target_embedding"
)  # fmt: skip
_MAX_ID = 2**32 - 1


class Selection(NamedTuple):
    """The columns and labels to read.

    columns: the names of the input and the target text; None: `INPUT_NAMES` and `TARGET_NAMES`.
    labels: the SNLI labels to keep; empty: all but the missing one.
    """

    columns: tuple[str, str] | None = None
    labels: tuple[str, ...] = ()


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse a table in which a column that is read occurs twice.

    Raises:
        DataError: names the columns.
    """
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"{path}: has several columns of the name {', '.join(twice)[:200]}; accepted is one of each", "duplicate column")


def to_record(place: Place, row: Mapping[str, Any], selection: Selection, faults: Faults) -> Record | None:
    """The record of a row; None if its label is not selected, which `faults` counts.

    Raises:
        DataError: a value has the wrong type, or there is no input.
    """
    input_names: Sequence[str] = INPUT_NAMES
    target_names: Sequence[str] = TARGET_NAMES
    if snli.is_without_label(row):
        faults.leave_out("without a label")
        return None
    label = snli.label(row)
    if selection.labels and label is None:
        raise place.error("no label", f"has no {' or '.join(snli.LABEL_NAMES)}, which --label needs")
    wanted = [snli.as_label(each) for each in selection.labels]
    if label is not None and wanted and label.isdecimal() and not any(each and each.isdecimal() for each in wanted):
        raise place.error(
            f"with a number as its label ({snli.NUMBERS})",
            f"has the label {label}, --label names {', '.join(selection.labels)}: labels here are numbers, {snli.NUMBERS}",
        )
    if wanted and label not in wanted:
        faults.leave_out(f"with label {label}")
        return None
    if selection.columns is not None:
        missing = [name for name in selection.columns if name not in row]
        if missing:
            raise place.error(
                "missing column", f"has no {', '.join(missing)}; it has {', '.join(map(str, row)) or 'nothing'}"
            )
        input_names, target_names = selection.columns[:1], selection.columns[1:]
    target = row.get("target")
    numbers = target if isinstance(target, list) else row.get("target_embedding")
    ids, mask = row.get("input_ids"), row.get("attention_mask")
    if ids is not None:
        ids = _integers(place, "input_ids", ids, _MAX_ID).astype(np.uint32)
        mask = np.ones(len(ids)) if mask is None else _integers(place, "attention_mask", mask, 255)
        mask = mask.astype(np.uint8)
    record = Record(
        input=_text(place, row, input_names),
        target=_text(place, row, target_names),
        input_ids=ids,
        attention_mask=None if ids is None else mask,
        input_embedding=_floats(place, "input_embedding", row.get("input_embedding")),
        target_embedding=_floats(place, "target", numbers),
    )
    if record.input is None and record.input_ids is None and record.input_embedding is None:
        got = ", ".join(str(name) for name in row) or "nothing"
        raise place.error(
            "no input", f"has no input text; accepted names are {', '.join(INPUT_NAMES)}, got {got[:200]}"
        )
    return record


def _text(place: Place, row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        value = row.get(name)
        if value is None or (name == "target" and isinstance(value, list)):
            continue
        if not isinstance(value, str):
            raise place.error("not a text", f"{name} must be a text, got {type(value).__name__}")
        return value
    return None


def _floats(place: Place, name: str, value: Any) -> NDArray[np.float32] | None:
    if value is None:
        return None
    array = _array(place, name, value, "numbers")
    if array.dtype.kind not in "fiu":
        raise place.error("not a number", f"{name} must be a list of numbers")
    with np.errstate(over="ignore"):  # overflow gives infinity, which is refused later
        return array.astype(np.float32)


def _integers(place: Place, name: str, value: Any, high: int) -> NDArray[np.integer]:
    array = np.zeros(0, np.int64) if value == [] else _array(place, name, value, "whole numbers")
    if array.dtype.kind not in "iu" or (array.size and (array.min() < 0 or array.max() > high)):
        raise place.error("bad tokens", f"{name} must hold whole numbers from 0 to {high}")
    return array


def _array(place: Place, name: str, value: Any, what: str) -> NDArray[Any]:
    fault: DataError = place.error("not a number", f"{name} must be a list of {what}")
    if not isinstance(value, list) or not value:
        raise fault
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise fault from None
    if array.ndim != 1:
        raise fault
    return array
