"""Checks of arguments: whole numbers and texts."""

import operator
from collections.abc import Sequence
from typing import Any

EMPTY_TEXT = "empty"  # stands for a text without a word, as in the PyTorch implementation


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int in low..high, both included.

    Raises:
        TypeError, ValueError: naming the argument, what came and what is accepted.
    """
    accepted = f"an integer of {low} or more" if high is None else f"an integer from {low} to {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {accepted}, got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {accepted}, got {number}")
    return number


def check_texts(name: str, texts: Any) -> list[str]:
    """`texts` as a list of encodable strings; a text of white space alone becomes "empty".

    Raises:
        TypeError: `texts` is not a sequence, is a bare string, or holds something that is not a string.
        ValueError: a string is not valid Unicode (a lone surrogate). Both name the argument and the index.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise TypeError(f"{name} must be a list of strings, got {type(texts).__name__}")
    checked = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}[{index}] is not valid Unicode: {error}") from None
        checked.append(text if text.strip() else EMPTY_TEXT)
    return checked
