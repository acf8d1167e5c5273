"""The records of a data file, and the handling of invalid ones."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """A data file, or a record in it, is invalid. The message names the file and the line, row or byte.

    `kind` is a short name of the error, by which skipped records are counted.
    """

    def __init__(self, text: str, kind: str = "unusable") -> None:
        super().__init__(text)
        self.kind = kind


class Place(NamedTuple):
    """The position of a record: `unit` is line, row, byte or pair; lines and rows count from 1, bytes from 0."""

    path: Path
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}: {self.unit} {self.number}"

    def error(self, kind: str, text: str) -> DataError:
        return DataError(f"{self}: {text}", kind)


class Record(NamedTuple):
    """One pair with the fields that its file has. Tokens are those of the input."""

    input: str | None = None
    target: str | None = None
    input_ids: NDArray[np.uint32] | None = None  # [T]
    attention_mask: NDArray[np.uint8] | None = None  # [T], 0 or 1; present if and only if input_ids is
    input_embedding: NDArray[np.float32] | None = None  # [E]
    target_embedding: NDArray[np.float32] | None = None  # [E]


Placed = tuple[Place, Record]


class Faults:
    """Counts the records that are left out. An invalid record raises its error or, with `skip`, is counted as well."""

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.counts: Counter[str] = Counter()

    def meet(self, error: DataError) -> None:
        """Raise the error of an invalid record or, with `skip`, count it."""
        if not self.skip:
            raise error
        self.counts[error.kind] += 1

    def leave_out(self, kind: str, count: int = 1) -> None:
        """Count valid records that are not used."""
        if count:
            self.counts[kind] += count

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items())) or "nothing"


def check_records(records: Iterable[Placed], faults: Faults, path: Path) -> Iterator[Placed]:
    """The valid records: one embedding size in the file, finite numbers, valid text, a mask of the ids' length.

    Raises:
        DataError: a record is invalid, unless `faults` skips it; or the file has no records.
    """
    size: int | None = None
    empty = True
    for place, record in records:
        empty = False
        fault = _fault(place, record, size)
        if fault is not None:
            faults.meet(fault)
            continue
        for embedding in (record.input_embedding, record.target_embedding):
            size = size if embedding is None else len(embedding)
        yield place, record
    if empty and not faults.counts:
        raise DataError(f"{path}: holds no records", "empty")


def _fault(place: Place, record: Record, size: int | None) -> DataError | None:
    for name in ("input", "target"):
        text = getattr(record, name)
        if text is not None and not is_unicode(text):
            return place.error("broken Unicode", f"the {name} text is not valid Unicode (a lone surrogate)")
    for name in ("input_embedding", "target_embedding"):
        embedding = getattr(record, name)
        if embedding is None:
            continue
        if size is not None and len(embedding) != size:
            return place.error("embedding size", f"{name} has {len(embedding)} numbers, earlier ones have {size}")
        size = len(embedding)
        if not np.isfinite(embedding).all():
            return place.error("not finite", f"{name} holds NaN or infinity")
    if record.input_ids is not None:
        mask = record.attention_mask
        if mask is None or len(mask) != len(record.input_ids):
            got = "none" if mask is None else str(len(mask))
            return place.error("token mask", f"{len(record.input_ids)} input_ids need as many mask entries, got {got}")
        if mask.size and mask.max() > 1:
            return place.error("token mask", f"attention_mask must hold 0 and 1, got {mask.max()}")
    return None


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_file(path: Path) -> int:
    """The size of a data file in bytes.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: is empty", "empty")
    return size
