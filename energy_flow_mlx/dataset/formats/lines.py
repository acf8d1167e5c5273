"""Reading lines of UTF-8 text with a bounded length."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..records import DataError, Faults, Place, check_file

MAX_LINE = 64 * 2**20  # bytes; otherwise a file without line breaks would be read into memory as one line
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path, faults: Faults) -> Iterator[tuple[Place, str]]:
    """Iterate over the lines of a file with their positions. A byte order mark is removed; line breaks stay.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is empty or UTF-16, or a line is not UTF-8 or over 64 MiB (unless `faults` skips it).
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
        if number == 1:
            if line.startswith(_UTF_16) or b"\0" in line[:4]:  # JSON and a table's header begin with ASCII
                raise DataError(
                    f"{path}: looks like UTF-16 or UTF-32; accepted is UTF-8, for example from"
                    f" iconv -f UTF-16 -t UTF-8 {path.name} > utf8{path.suffix}",
                    "not UTF-8",
                )
            line = line.removeprefix(_BOM)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            faults.meet(place.error("broken UTF-8", f"is not UTF-8 at byte {error.start} of the line: {error.reason}"))
            continue
        yield place, text


def without_break(line: str) -> str:
    """The line without the line break at its end, of Unix or of Windows."""
    return line.removesuffix("\n").removesuffix("\r")
