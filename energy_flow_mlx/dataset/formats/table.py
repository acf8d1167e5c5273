"""CSV and TSV: one pair per row, with a header row that names the columns.

CSV fields may be quoted and then contain line breaks. TSV fields have no quoting, as in SNLI's files.
"""

import csv
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from ..records import DataError, Faults, Place, Placed
from .lines import MAX_LINE, read_lines, without_break
from .rows import INPUT_NAMES, TARGET_NAMES, Selection, check_names, to_record

# What the library says, in the words of a file's owner.
_REASONS = {"unexpected end of data": "a quote that begins in this row is not closed"}


def read(path: Path, faults: Faults, selection: Selection) -> Iterator[Placed]:
    """Iterate over the records of a table. If columns are selected by number (from 1), the file has no header row.

    Raises:
        FileNotFoundError: no such file.
        DataError: as `read_lines`; also for missing or repeated columns and, unless `faults` skips it, a row of another
            length, with a quote that is not closed or with text behind a closed one.
    """
    tabs = path.suffix.lower() in (".tsv", ".txt")
    rows = _split_tabs(path, faults) if tabs else _split_csv(path, faults)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: holds no rows", "empty")
    place, names = first
    columns = selection.columns
    if columns is not None and all(name.isdecimal() for name in columns):
        names = [str(number) for number in range(1, len(names) + 1)]
        rows = chain([first], rows)
    known = [columns[:1], columns[1:]] if columns else [INPUT_NAMES, TARGET_NAMES]
    if not all(set(accepted) & set(names) for accepted in known):
        needed = " and ".join(" or ".join(accepted) for accepted in known)
        raise place.error(
            "missing column",
            f"names the columns {', '.join(names)[:200]}{_separators(names, known, tabs)};"
            f" needed are {needed} (--columns INPUT,TARGET names others)",
        )
    check_names(path, names)
    for place, fields in rows:
        try:
            record = to_record(place, dict(zip(names, fields, strict=True)), selection, faults)
        except DataError as error:
            faults.meet(error)
            continue
        if record is not None:
            yield place, record


def _separators(names: Sequence[str], known: Sequence[Sequence[str]], tabs: bool) -> str:
    """How to go on with a header whose columns would be the known ones with another separator; empty if they would not."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")):
        split = [part.strip(" \"'") for part in ",".join(names).split(mark)]
        if all(set(accepted) & set(split) for accepted in known):
            ours = "tabs" if tabs else "commas"
            rename = "; rename it to .tsv" if mark == "\t" else "; rename it to .csv" if mark == "," else ""
            return f", separated by {name}, where a {'.tsv or .txt' if tabs else '.csv'} file has {ours}{rename}"
    return ""


def _split_tabs(path: Path, faults: Faults) -> Iterator[tuple[Place, list[str]]]:
    """The rows, all as long as the first."""
    size = 0
    for place, line in read_lines(path, faults):
        if text := without_break(line):
            fields = text.split("\t")
            size = size or len(fields)
            if len(fields) == size:
                yield place, fields
            else:
                faults.meet(_length(place, fields, size))


def _split_csv(path: Path, faults: Faults) -> Iterator[tuple[Place, list[str]]]:
    """The rows, all as long as the first, each with the place of its first line.

    A faulty row costs itself alone: a quote that is not closed takes in the lines after it, which are read again.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))  # the default is 128 KiB; the limit is global
    source = read_lines(path, faults)
    again: deque[tuple[Place, str]] = deque()
    taken: list[tuple[Place, str]] = []  # the lines of the row being read

    def lines() -> Iterator[str]:
        while (line := again.popleft() if again else next(source, None)) is not None:
            taken.append(line)
            yield line[1]

    size = 0
    while True:
        taken.clear()
        try:
            # A new reader for each row: it stands at the beginning of a row, also after an error.
            fields = next(csv.reader(lines(), strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            fault = taken[0][0].error("not CSV", f"is not CSV: {_REASONS.get(str(error), str(error))}")
        else:
            if not fields:
                continue
            size = size or len(fields)
            if len(fields) == size:
                yield taken[0][0], fields
                continue
            fault = _length(taken[0][0], fields, size)
        faults.meet(fault)
        again.extendleft(reversed(taken[1:]))


def _length(place: Place, fields: Sequence[str], size: int) -> DataError:
    return place.error("fields", f"has {len(fields)} fields, the header has {size}")
