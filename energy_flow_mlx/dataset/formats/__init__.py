"""File formats, one module each; the file's extension selects the format."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...files import write_aside
from ..records import DataError, Faults, Placed, check_records
from . import efb, jsonl, pack, parquet, table
from .rows import Selection

READ = (
    ".jsonl",
    ".csv",
    ".tsv",
    ".txt (TSV, as SNLI's)",
    ".parquet",
    ".efb",
    ".efb1",
    ".efb2",
    ".bin (EFB)",
    ".pt",
    ".safetensors (a pack)",
)
_READ_BY_SUFFIX = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv", ".txt"), "table"),
    **dict.fromkeys((".efb", ".efb1", ".efb2", ".bin"), "efb"),
    **dict.fromkeys((".pt", ".safetensors"), "pack"),
    ".parquet": "parquet",
}
# The fields of a record that each written format can store.
HOLDS = {"jsonl": jsonl.HOLDS, **efb.HOLDS, "pt": pack.HOLDS, "safetensors": pack.HOLDS}
_WRITE_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".efb1": "efb1",
    ".efb2": "efb2",
    ".efb": "efb2",
    ".pt": "pt",
    ".safetensors": "safetensors",
}


def read_file(path: Path, faults: Faults, selection: Selection | None = None) -> Iterator[Placed]:
    """Iterate over the validated records of a data file.

    Args:
        path: the file; its extension selects the format.
        faults: handles invalid records.
        selection: columns and labels, if the format has them.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is invalid; names the line, row or byte.
    """
    selection = selection or Selection()
    chosen = format_to_read(path)
    if chosen == "efb":
        records = efb.read(path, faults)
    elif chosen == "pack":
        records = pack.read(path)
    elif chosen == "jsonl":
        records = jsonl.read(path, faults, selection)
    elif chosen == "table":
        records = table.read(path, faults, selection)
    else:
        records = parquet.read(path, faults, selection)
    return check_records(records, faults, path)


def format_to_read(path: Path) -> str:
    """The format of a file by its extension: jsonl, table, efb, pack or parquet.

    Raises:
        DataError: no format that can be read has this extension.
    """
    chosen = _READ_BY_SUFFIX.get(path.suffix.lower())
    if chosen is None:
        raise DataError(f"{path}: unknown extension {path.suffix!r}; supported are {', '.join(READ)}", "format")
    return chosen


def format_to_write(path: Path) -> str:
    """The format for a new file's extension: jsonl, efb1, efb2 (also .efb), pt or safetensors.

    Raises:
        DataError: no format that can be written has this extension.
    """
    chosen = _WRITE_BY_SUFFIX.get(path.suffix.lower())
    if chosen is None:
        raise DataError(
            f"{path}: cannot write {path.suffix!r} files; supported are {', '.join(_WRITE_BY_SUFFIX)}", "format"
        )
    return chosen


def write_file(path: Path, records: Iterable[Placed], info: Mapping[str, Any] | None = None) -> int:
    """Write records to a file atomically; returns their number. Only packs store `info`.

    Raises:
        DataError: the extension is not supported, a record lacks a field that the format needs, or there are no
            records.
    """
    chosen = format_to_write(path)
    count = 0

    def write(aside: Path) -> None:
        nonlocal count
        if chosen == "jsonl":
            count = jsonl.write(aside, records)
        elif chosen in ("efb1", "efb2"):
            count = efb.write(aside, records, chosen)
        else:
            count = pack.write(aside, records, info or {}, f".{chosen}")
        if count == 0:
            raise DataError(f"{path}: there are no records to write", "empty")

    write_aside(path, write)
    return count
