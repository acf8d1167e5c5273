"""SNLI's conventions: what its sentences are called, and the pairs whose annotators did not agree."""

from collections.abc import Mapping
from typing import Any

INPUT_NAMES = ("sentence1", "premise")  # the distribution's, the hub's
TARGET_NAMES = ("sentence2", "hypothesis")
LABEL_NAMES = ("gold_label", "label")
# The distribution writes "-", the hub -1.
_NO_LABEL = ("-", "-1")


def label(row: Mapping[str, Any]) -> str | None:
    """The label of a row as text; None where it has none."""
    values = [row[name] for name in LABEL_NAMES if row.get(name) is not None]
    return str(values[0]) if values else None


def is_without_label(row: Mapping[str, Any]) -> bool:
    """Whether the row has sentences under SNLI's names, and a label that stands for annotators who did not agree."""
    return any(name in row for name in INPUT_NAMES) and label(row) in _NO_LABEL
