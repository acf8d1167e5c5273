"""EFB1 and EFB2, little-endian binary files of targets with tokens or texts.

    EFB1:  "EFB1"  u32 samples  u32 E              a sample: u32 T, T x u32 ids, T x u8 mask, E x f32 target
    EFB2:  "EFB2"  u32 samples  u32 E  u32 flags   a sample: [u32 bytes, UTF-8 text] [u32 T, ids, mask] E x f32 target

flags: bit 0 tokens, bit 1 text, bit 2 every target has length 1.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..records import DataError, Faults, Place, Placed, Record, check_file

HOLDS = {
    "efb1": frozenset({"input_ids", "attention_mask", "target_embedding"}),
    "efb2": frozenset({"input", "input_ids", "attention_mask", "target_embedding"}),
}
TOKENS, TEXT, NORMALISED = 1, 2, 4
_TOLERANCE = 1e-2  # of the length 1; targets that were rounded to half precision pass


def read(path: Path, faults: Faults) -> Iterator[Placed]:
    """The samples of an EFB1 or EFB2 file. Nothing is allocated before the size of the file allows it.

    Raises:
        FileNotFoundError: no such file.
        DataError: wrong magic, unknown flags, more samples than bytes, cut off, or bytes too many; names the byte.
            These end the reading. Broken UTF-8 and a target whose length is not 1 although the file says so are
            faults of a sample, which `faults` may skip.
    """
    check_file(path)
    with path.open("rb") as file:
        reader = _Bytes(path, file)
        magic = reader.take(4, "the magic")
        if magic not in (b"EFB1", b"EFB2"):
            raise DataError(f"{path}: byte 0: must start with EFB1 or EFB2, got {magic!r}", "no EFB")
        samples, dim = reader.number("the number of samples"), reader.number("E")
        flags = TOKENS if magic == b"EFB1" else reader.number("the flags")
        if flags & ~(TOKENS | TEXT | NORMALISED):
            raise DataError(f"{path}: byte 12: flags 0x{flags:x} are not known; accepted are bits 0, 1 and 2", "no EFB")
        if samples == 0 or dim == 0:
            raise DataError(f"{path}: byte 4: says {samples} samples of {dim} numbers; both must be 1 or more", "empty")
        least = 4 * dim + 4 * bool(flags & TOKENS) + 4 * bool(flags & TEXT)
        if samples * least > reader.left:
            raise DataError(
                f"{path}: byte 4: says {samples} samples of {dim} numbers, which need {samples * least} bytes or more; "
                f"{reader.left} follow",
                "cut off",
            )
        for _ in range(samples):
            place = Place(path, "byte", reader.offset)
            try:
                record = _sample(reader, place, dim, flags)
            except UnicodeDecodeError as error:
                reader.target(dim)
                faults.meet(
                    place.error("broken UTF-8", f"the text is no UTF-8 at its byte {error.start}: {error.reason}")
                )
                continue
            assert record.target_embedding is not None
            length = float(np.linalg.norm(record.target_embedding.astype(np.float64)))
            if flags & NORMALISED and abs(length - 1) > _TOLERANCE:
                faults.meet(
                    place.error("not normalised", f"the file says that targets have length 1, this has {length:g}")
                )
                continue
            yield place, record
        if reader.left:
            raise DataError(
                f"{path}: byte {reader.offset}: {reader.left} bytes follow the last sample", "bytes too many"
            )


def write(path: Path, records: Iterable[Placed], version: str) -> int:
    """Write `version` efb1 or efb2; returns how many samples. EFB2 holds what the first record has.

    Raises:
        DataError: a record lacks what the file must hold.
    """
    count, dim, flags, normalised = 0, 0, TOKENS, True
    with path.open("wb") as file:
        for place, record in records:
            if record.target_embedding is None:
                raise place.error(
                    "no target",
                    f"has no target embedding, which {version} needs: build a dataset with a teacher and convert that",
                )
            if count == 0:
                dim = len(record.target_embedding)
                if version == "efb2":
                    flags = TOKENS * (record.input_ids is not None) + TEXT * (record.input is not None)
                file.write(_header(version, count, dim, flags))
            if flags & TEXT:
                if record.input is None:
                    raise place.error("no text", "has no text; the records before have")
                text = record.input.encode()
                file.write(struct.pack("<I", len(text)) + text)
            if flags & TOKENS:
                if record.input_ids is None or record.attention_mask is None:
                    raise place.error(
                        "no tokens",
                        f"has no tokens, which this {version} file needs: --tokenizer makes them from texts",
                    )
                file.write(struct.pack("<I", len(record.input_ids)))
                file.write(record.input_ids.astype("<u4").tobytes() + record.attention_mask.astype(np.uint8).tobytes())
            file.write(record.target_embedding.astype("<f4").tobytes())
            normalised = (
                normalised and abs(float(np.linalg.norm(record.target_embedding.astype(np.float64))) - 1) < 1e-3
            )
            count += 1
        if count:
            file.seek(0)
            file.write(_header(version, count, dim, flags | NORMALISED * normalised))
    return count


def _header(version: str, samples: int, dim: int, flags: int) -> bytes:
    head = version.upper().encode() + struct.pack("<II", samples, dim)
    return head if version == "efb1" else head + struct.pack("<I", flags)


def _sample(reader: "_Bytes", place: Place, dim: int, flags: int) -> Record:
    """One sample. A text that is no UTF-8 raises once its tokens are passed, so that the target is next."""
    text, ids, mask, broken = None, None, None, None
    if flags & TEXT:
        try:
            text = reader.take(reader.number("the length of the text"), "the text").decode()
        except UnicodeDecodeError as error:
            broken = error
    if flags & TOKENS:
        count = reader.number("T")
        tokens = reader.take(5 * count, f"{count} tokens with their mask")
        ids = np.frombuffer(tokens, "<u4", count).astype(np.uint32)
        mask = np.frombuffer(tokens, np.uint8, count, 4 * count).copy()
    if broken is not None:
        raise broken
    return Record(input=text, input_ids=ids, attention_mask=mask, target_embedding=reader.target(dim))


class _Bytes:
    """A file read from start to end, which knows how many bytes are left."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.offset, self.left = 0, path.stat().st_size

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise DataError(
                f"{self.path}: byte {self.offset}: is cut off: {what} takes {count} bytes, {self.left} are left",
                "cut off",
            )
        data = self._file.read(count)
        if len(data) < count:
            raise DataError(f"{self.path}: byte {self.offset}: the file shrank while it was read", "cut off")
        self.offset, self.left = self.offset + count, self.left - count
        return data

    def number(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def target(self, dim: int) -> np.ndarray:
        return np.frombuffer(self.take(4 * dim, f"a target of {dim} numbers"), "<f4").astype(np.float32)
