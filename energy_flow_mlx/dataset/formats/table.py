"""CSV and TSV: one pair per row, with a header row that names the columns.

CSV fields may be quoted and then contain line breaks. TSV fields have no quoting, as in SNLI's files.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from ..records import DataError, Faults, Place, Placed
from .lines import MAX_LINE, read_lines
from .rows import INPUT_NAMES, TARGET_NAMES, Selection, to_record


def read(path: Path, faults: Faults, selection: Selection) -> Iterator[Placed]:
    """Iterate over the records of a table. If columns are selected by number (from 1), the file has no header row.

    Raises:
        FileNotFoundError: no such file.
        DataError: as `read_lines`; also for missing columns, a row of another length, and an unclosed quote.
    """
    rows = _split_tabs(path, faults) if path.suffix.lower() in (".tsv", ".txt") else _split_csv(path, faults)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: holds no rows", "empty")
    place, names = first
    columns = selection.columns
    if columns is not None and all(name.isdecimal() for name in columns):
        names = [str(number) for number in range(1, len(names) + 1)]
        rows = _with_first(first, rows)
    known = [columns[:1], columns[1:]] if columns else [INPUT_NAMES, TARGET_NAMES]
    if not all(set(accepted) & set(names) for accepted in known):
        needed = " and ".join(" or ".join(accepted) for accepted in known)
        raise place.error(
            "missing column",
            f"names the columns {', '.join(names)[:200]}; needed are {needed} (--columns INPUT,TARGET names others)",
        )
    for place, fields in rows:
        if not fields:
            continue
        try:
            if len(fields) != len(names):
                raise place.error("fields", f"has {len(fields)} fields, the header has {len(names)}")
            record = to_record(place, dict(zip(names, fields, strict=True)), selection, faults)
        except DataError as error:
            faults.meet(error)
            continue
        if record is not None:
            yield place, record


def _with_first(
    first: tuple[Place, list[str]], rows: Iterator[tuple[Place, list[str]]]
) -> Iterator[tuple[Place, list[str]]]:
    yield first
    yield from rows


def _split_tabs(path: Path, faults: Faults) -> Iterator[tuple[Place, list[str]]]:
    for place, line in read_lines(path, faults):
        yield place, line.split("\t") if line else []


def _split_csv(path: Path, faults: Faults) -> Iterator[tuple[Place, list[str]]]:
    place = Place(path, "line", 1)

    def lines() -> Iterator[str]:
        nonlocal place
        for position, line in read_lines(path, faults):
            place = position
            yield line + "\n"

    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))  # the default is 128 KiB; the limit is global
    reader = csv.reader(lines(), strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise place.error("not CSV", f"is not CSV: {error}") from error
        yield place, fields
