"""Plain text files, one text a line."""

import codecs
from pathlib import Path


def read_texts(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank, without white space around them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty or blank, or a line is not UTF-8; names the file, line and byte.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    texts = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                text = line.decode().strip()
            except UnicodeDecodeError as error:
                start = file.tell() - len(line) + error.start
                raise ValueError(f"{path}: line {number} is not UTF-8 ({error.reason} at byte {start})") from None
            if text:
                texts.append(text)
    if not texts:
        raise ValueError(f"{path}: holds no text")
    return texts
