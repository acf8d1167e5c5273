"""File formats, one module each, and the choice between them by a file's ending."""

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
# What a written format holds of a record.
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
    """The records of a data file, checked; only what is asked for is read.

    Args:
        path: its ending says which format it has.
        faults: what happens to a record that cannot be used.
        selection: columns and labels, where the format has them.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file cannot be used; names the line, row or byte.
    """
    selection = selection or Selection()
    suffix = path.suffix.lower()
    if suffix in (".efb", ".efb1", ".efb2", ".bin"):
        records = efb.read(path, faults)
    elif suffix in (".pt", ".safetensors"):
        records = pack.read(path)
    elif suffix in (".jsonl", ".json", ".ndjson"):
        records = jsonl.read(path, faults, selection)
    elif suffix in (".csv", ".tsv", ".txt"):
        records = table.read(path, faults, selection)
    elif suffix == ".parquet":
        records = parquet.read(path, faults, selection)
    else:
        raise DataError(f"{path}: the ending {suffix!r} is not known; read are {', '.join(READ)}", "format")
    return check_records(records, faults, path)


def format_to_write(path: Path) -> str:
    """The format that a new file's ending stands for: jsonl, efb1, efb2 (also .efb), pt or safetensors.

    Raises:
        DataError: none is written under that ending.
    """
    chosen = _WRITE_BY_SUFFIX.get(path.suffix.lower())
    if chosen is None:
        raise DataError(
            f"{path}: the ending {path.suffix!r} is not written; written are {', '.join(_WRITE_BY_SUFFIX)}", "format"
        )
    return chosen


def write_file(path: Path, records: Iterable[Placed], info: Mapping[str, Any] | None = None) -> int:
    """Write records aside and rename; returns how many. `info` is kept by packs alone.

    Raises:
        DataError: no format has the file's ending; a record lacks what the format needs; there is no record.
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
            raise DataError(f"{path}: there is nothing to write, no record came", "empty")

    write_aside(path, write)
    return count
