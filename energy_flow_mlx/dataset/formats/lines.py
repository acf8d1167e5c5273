"""Reading lines of UTF-8 text with a bounded length."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..records import Faults, Place, check_file

MAX_LINE = 64 * 2**20  # bytes; otherwise a file without line breaks would be read into memory as one line
_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path, faults: Faults) -> Iterator[tuple[Place, str]]:
    """Iterate over the lines of a file with their positions. Line breaks and a byte order mark are removed.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is empty, or a line is not UTF-8 or over 64 MiB (unless `faults` skips it).
    """
    check_file(path)
    with path.open("rb") as file:
        yield from lines_of(file, path, faults)


def lines_of(file: BinaryIO, path: Path, faults: Faults) -> Iterator[tuple[Place, str]]:
    """As `read_lines`, of a file that is open, and which errors call `path`; it may be empty."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        place = Place(path, "line", number)
        if len(line) > MAX_LINE:
            faults.meet(place.error("line too long", f"is over {MAX_LINE} bytes long"))
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            continue
        if number == 1 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            faults.meet(place.error("broken UTF-8", f"is not UTF-8 at byte {error.start} of the line: {error.reason}"))
            continue
        yield place, text.rstrip("\r\n")
