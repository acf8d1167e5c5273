"""What a data file holds, record by record, and what happens to a record that cannot be used."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """A data file, or a record in it, cannot be used. The text names the file and the line, row or byte.

    `kind` says in a few words what is wrong; skipped records are counted by it.
    """

    def __init__(self, text: str, kind: str = "unusable") -> None:
        super().__init__(text)
        self.kind = kind


class Place(NamedTuple):
    """Where a record stands: `unit` is line, row or byte; lines and rows count from 1, bytes from 0."""

    path: Path
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.path}: {self.unit} {self.number}"

    def error(self, kind: str, text: str) -> DataError:
        return DataError(f"{self}: {text}", kind)


class Record(NamedTuple):
    """One pair, as far as a file holds it. `input_ids` are the tokens of the input."""

    input: str | None = None
    target: str | None = None
    input_ids: NDArray[np.uint32] | None = None  # [T]
    attention_mask: NDArray[np.uint8] | None = None  # [T], 0 or 1; there when input_ids are
    input_embedding: NDArray[np.float32] | None = None  # [E]
    target_embedding: NDArray[np.float32] | None = None  # [E]


Placed = tuple[Place, Record]


class Faults:
    """Counts what is left out. A record that is at fault stops the reading, unless `skip` is set: then it counts too."""

    def __init__(self, skip: bool = False) -> None:
        self.skip = skip
        self.counts: Counter[str] = Counter()

    def meet(self, error: DataError) -> None:
        """Raise the error, or count it and go on."""
        if not self.skip:
            raise error
        self.counts[error.kind] += 1

    def leave_out(self, kind: str, count: int = 1) -> None:
        """Count records that are no fault and yet not wanted."""
        if count:
            self.counts[kind] += count

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items())) or "nothing"


def check_records(records: Iterable[Placed], faults: Faults, path: Path) -> Iterator[Placed]:
    """The records whose parts fit each other: one embedding size in the file, finite numbers, valid text, ids with masks.

    Raises:
        DataError: a record does not fit, unless `faults` skips it; or there is no record at all.
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
            return place.error("embedding size", f"{name} has {len(embedding)} numbers, those before have {size}")
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
