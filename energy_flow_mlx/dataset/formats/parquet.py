"""Parquet, through pyarrow, which the extra `parquet` installs."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from ..records import DataError, Faults, Place, Placed, check_file
from .rows import NAMES, Selection, to_record

_ROWS = 1024  # read at a time


def read(path: Path, faults: Faults, selection: Selection) -> Iterator[Placed]:
    """The records of a Parquet file, by the names that JSONL has.

    Raises:
        FileNotFoundError: no such file.
        DataError: pyarrow is not installed; the file is damaged or no Parquet; no known columns.
    """
    check_file(path)
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install 'energy-flow-mlx[parquet]'", "no pyarrow")
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if name in (*NAMES, *(selection.columns or ()))]
            if not wanted:
                raise DataError(
                    f"{path}: has the columns {', '.join(file.schema_arrow.names)}; none is known (--columns INPUT,TARGET names others)",
                    "missing column",
                )
            for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    place = Place(path, "row", number)
                    try:
                        record = to_record(place, row, selection, faults)
                    except DataError as error:
                        faults.meet(error)
                        continue
                    if record is not None:
                        yield place, record
    except DataError:
        raise
    # A damaged file makes pyarrow fail in many ways, ArrowException and UnicodeDecodeError being ValueErrors of its own.
    except (pyarrow.ArrowException, ValueError, OSError, EOFError, KeyError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: is damaged or no Parquet file, after row {number}: {reason}", "no Parquet") from error
