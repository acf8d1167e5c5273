"""SNLI's conventions: column names, and the label of pairs on which the annotators did not agree."""

from collections.abc import Mapping
from typing import Any

INPUT_NAMES = ("sentence1", "premise")  # in SNLI's own files, on the hub
TARGET_NAMES = ("sentence2", "hypothesis")
LABEL_NAMES = ("gold_label", "label")
# "-" in SNLI's own files, -1 on the hub.
_NO_LABEL = ("-", "-1")


def label(row: Mapping[str, Any]) -> str | None:
    """The label of a row as text; None if it has none."""
    values = [row[name] for name in LABEL_NAMES if row.get(name) is not None]
    return str(values[0]) if values else None


def is_without_label(row: Mapping[str, Any]) -> bool:
    """Whether the row has SNLI's columns and the label for pairs on which the annotators did not agree."""
    return any(name in row for name in INPUT_NAMES) and label(row) in _NO_LABEL
