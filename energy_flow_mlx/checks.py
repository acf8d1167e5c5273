"""Checks of arguments: integers, texts, and names that may be misspelt."""

import difflib
import operator
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

MOST = 2**31 - 1  # of every whole number: devices count in 32 bits
EMPTY_TEXT = "empty"  # replaces an empty text, as in the PyTorch implementation


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int, checked to be in low..high (inclusive).

    Raises:
        TypeError, ValueError: the message names the argument, its value and what is accepted.
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


def whole_number(text: str) -> int | None:
    """The number that a text of ASCII digits alone writes; None for any other text, and for a number of more than 18 digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def canonical(text: str) -> str:
    """What tells two texts apart: NFKC, without case, control characters and zero-width characters, white space as single spaces.

    Tokenisers and teachers as a rule see no more than that, so texts that agree in it are one premise.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_invisible()).split())


def is_blank(text: str) -> bool:
    """Whether a text holds nothing but white space, control characters and zero-width characters."""
    return not text.translate(_invisible()).strip()


@cache
def _invisible() -> dict[int, None]:
    """Unicode's control (Cc) and format (Cf) characters but for white space, for `str.translate` to remove."""
    characters = map(chr, range(sys.maxunicode + 1))
    return {ord(each): None for each in characters if unicodedata.category(each) in ("Cc", "Cf") and not each.isspace()}


def check_texts(name: str, texts: Any) -> list[str]:
    """`texts` as a list of valid strings; a blank text (`is_blank`) becomes "empty".

    Raises:
        TypeError: `texts` is a string or not a sequence, or an item is not a string.
        ValueError: an item is not valid Unicode (a lone surrogate). Both messages name the argument and the index.
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
        checked.append(EMPTY_TEXT if is_blank(text) else text)
    return checked


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """"; did you mean …?" with up to three known names that `word` gives the initials of, is spelt like, or is a part of."""
    names = {"-".join(re.findall("[^-_]+", name)): name for name in known}
    asked = "-".join(re.findall("[^-_]+", word))
    close = [plain for plain in names if asked == "".join(part[0] for part in plain.split("-"))]
    close += difflib.get_close_matches(asked, names, n=1, cutoff=0.75)
    close += sorted((plain for plain in names if f"-{asked}-" in f"-{plain}-"), key=len)
    hints = [names[plain] for plain in dict.fromkeys(close)][:3]
    return f"; did you mean {' or '.join(hints)}?" if hints else ""
