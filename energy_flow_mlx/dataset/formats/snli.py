"""SNLI's conventions: column names, and the label of pairs on which the annotators did not agree."""

import re
from collections.abc import Mapping
from typing import Any

INPUT_NAMES = ("sentence1", "premise")  # in SNLI's own files, on the hub
TARGET_NAMES = ("sentence2", "hypothesis")
LABEL_NAMES = ("gold_label", "label")
# "-" in SNLI's own files, -1 on the hub.
_NO_LABEL = ("-", "-1")
NUMBERS = "0 = entailment, 1 = neutral, 2 = contradiction"  # on the hub
_WHOLE = re.compile(r"[+-]?\d{1,15}\.0*")


def label(row: Mapping[str, Any]) -> str | None:
    """The label of a row as text; None if it has none."""
    labels = (as_label(row.get(name)) for name in LABEL_NAMES)
    return next((label for label in labels if label is not None), None)


def as_label(value: Any) -> str | None:
    """A label as text, the same in every format: a column of whole numbers with gaps may be read as floats, with NaN or
    an empty text in its gaps."""
    text = "" if value is None else str(value).strip()
    if _WHOLE.fullmatch(text):
        return str(int(float(text)))
    return None if text in ("", "nan", "NaN") else text


def is_without_label(row: Mapping[str, Any]) -> bool:
    """Whether the row has SNLI's columns and the label for pairs on which the annotators did not agree."""
    return any(name in row for name in INPUT_NAMES) and label(row) in _NO_LABEL
