"""Reading texts: one a line, as they come, and never more of a line than can count."""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

MOST_CHARACTERS = 65_536  # of a text: far more than the tokens that a text encoder reads


class Text(NamedTuple):
    """A text, and whether it was longer than MOST_CHARACTERS."""

    text: str
    cut: bool


def given_texts(texts: Sequence[str]) -> Iterator[Text]:
    """Texts from the command line.

    Raises:
        ValueError: a text is empty; names its number.
    """
    for number, text in enumerate(texts, 1):
        yield _checked(text[: MOST_CHARACTERS + 1], f"text {number}")


def read_lines(file: TextIO, name: str) -> Iterator[Text]:
    """The lines of an open file, each as soon as it is there.

    Raises:
        ValueError: a line is empty or not UTF-8; names file and line.
    """
    number = 0
    while True:
        number += 1
        try:
            line = rest = file.readline(MOST_CHARACTERS + 1)
            while rest and not rest.endswith("\n"):
                rest = file.readline(MOST_CHARACTERS)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: not UTF-8 near line {number}: {error.reason}") from None
        if not line:
            return
        yield _checked(line.removesuffix("\n"), f"{name}, line {number}")


def _checked(text: str, where: str) -> Text:
    if is_blank(text):
        raise ValueError(f"{where}: {text[:20]!r} is an empty text; accepted are texts with at least one visible character")
    return Text(text[:MOST_CHARACTERS], len(text) > MOST_CHARACTERS)


def is_blank(text: str) -> bool:
    """Whether nothing in a text can be seen: no characters, or spaces, controls and marks of no width alone."""
    return all(unicodedata.category(character)[0] in "ZC" for character in text)
