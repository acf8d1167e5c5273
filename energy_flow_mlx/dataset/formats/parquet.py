"""Parquet, read with pyarrow (installed by the extra `parquet`)."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..records import DataError, Faults, Place, Placed, check_file
from .rows import NAMES, Selection, check_names, to_record

_ROWS = 1024  # read at a time


def read(path: Path, faults: Faults, selection: Selection) -> Iterator[Placed]:
    """Iterate over the records of a Parquet file; its columns have the names of JSONL's fields.

    Raises:
        FileNotFoundError: no such file.
        DataError: pyarrow is not installed, the file is damaged or not Parquet, or it has no known column.
    """
    check_file(path)
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install 'energy-flow-mlx[parquet]'", "no pyarrow")
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in (*NAMES, *(selection.columns or ()))]
            check_names(path, columns)
            if not columns:
                raise DataError(
                    f"{path}: has the columns {', '.join(file.schema_arrow.names)}; none is known (--columns INPUT,TARGET names others)",
                    "missing column",
                )
            for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
                try:
                    rows = batch.to_pylist()
                except (ValueError, OverflowError):  # found again below, by row
                    rows = None
                for index in range(len(batch)):
                    number += 1
                    place = Place(path, "row", number)
                    try:
                        record = to_record(place, rows[index] if rows else _row(place, batch, index), selection, faults)
                    except DataError as error:
                        faults.meet(error)
                        continue
                    if record is not None:
                        yield place, record
    except DataError:
        raise
    # Everything that pyarrow raises for damaged files. DataError is a ValueError too, hence the clause above.
    except (pyarrow.ArrowException, ValueError, OSError, EOFError, KeyError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: is damaged or not a Parquet file, after row {number}: {reason}", "not Parquet"
        ) from error


def _row(place: Place, batch: Any, index: int) -> dict[str, Any]:
    """One row of a record batch that has a value which Python cannot hold; that value costs its row alone."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            raise place.error("broken UTF-8", f"{name} is not UTF-8 at byte {error.start}: {error.reason}") from error
        except (ValueError, OverflowError) as error:  # a time out of Python's range, for example
            raise place.error("unusable", f"{name} cannot be read: {error}") from error
    return row
