"""EFB1 and EFB2: little-endian binary files of target embeddings with tokens or texts.

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
_TOLERANCE = 1e-2  # deviation from length 1; accepts targets that were rounded to half precision


def read(path: Path, faults: Faults) -> Iterator[Placed]:
    """Iterate over the samples of an EFB1 or EFB2 file. Sizes are checked against the file's before allocating memory.

    Raises:
        FileNotFoundError: no such file.
        DataError: wrong magic, unknown flags, more samples than the file can hold, a truncated file, or trailing bytes;
            names the byte. Invalid UTF-8, and a target whose length is not 1 in a file flagged as normalised, make one
            sample invalid, which `faults` may skip.
    """
    check_file(path)
    with path.open("rb") as file:
        reader = _Bytes(path, file)
        magic = reader.take(4, "the magic")
        if magic not in (b"EFB1", b"EFB2"):
            raise DataError(f"{path}: byte 0: must start with EFB1 or EFB2, got {magic!r}", "not EFB")
        samples, dim = reader.number("the number of samples"), reader.number("E")
        flags = TOKENS if magic == b"EFB1" else reader.number("the flags")
        if flags & ~(TOKENS | TEXT | NORMALISED):
            raise DataError(f"{path}: byte 12: unknown flags 0x{flags:x}; accepted are bits 0, 1 and 2", "not EFB")
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
                    place.error("broken UTF-8", f"the text is not UTF-8 at its byte {error.start}: {error.reason}")
                )
                continue
            assert record.target_embedding is not None
            length = float(np.linalg.norm(record.target_embedding.astype(np.float64)))
            if flags & NORMALISED and abs(length - 1) > _TOLERANCE:
                faults.meet(
                    place.error(
                        "not normalised", f"the file is flagged as normalised, this target has length {length:g}"
                    )
                )
                continue
            yield place, record
        if reader.left:
            raise DataError(
                f"{path}: byte {reader.offset}: {reader.left} bytes follow the last sample", "trailing bytes"
            )


def write(path: Path, records: Iterable[Placed], version: str) -> int:
    """Write an EFB file of `version` efb1 or efb2; returns the number of samples.

    EFB2 stores text and tokens if the first record has them; all others must then have them too.

    Raises:
        DataError: a record lacks a field that the file needs.
    """
    count, dim, flags, normalised = 0, 0, TOKENS, True
    with path.open("wb") as file:
        for place, record in records:
            if record.target_embedding is None:
                raise place.error(
                    "no target",
                    f"has no target embedding, which {version} needs: build a dataset with a teacher and convert it",
                )
            if count == 0:
                dim = len(record.target_embedding)
                if version == "efb2":
                    flags = TOKENS * (record.input_ids is not None) + TEXT * (record.input is not None)
                file.write(_header(version, count, dim, flags))
            if flags & TEXT:
                if record.input is None:
                    raise place.error("no text", "has no text, but earlier records have one")
                text = record.input.encode()
                file.write(struct.pack("<I", len(text)) + text)
            if flags & TOKENS:
                if record.input_ids is None or record.attention_mask is None:
                    raise place.error(
                        "no tokens",
                        f"has no tokens, which this {version} file needs: --tokenizer encodes the texts",
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
    """Read one sample. Invalid UTF-8 raises only after the tokens are read, so that the reader is at the target."""
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
    """Reads a file sequentially and checks each read against the number of remaining bytes."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file = path, file
        self.offset, self.left = 0, path.stat().st_size

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise DataError(
                f"{self.path}: byte {self.offset}: is cut off: {what} takes {count} bytes, {self.left} remain",
                "cut off",
            )
        data = self._file.read(count)
        if len(data) < count:
            raise DataError(f"{self.path}: byte {self.offset}: the file shrank while being read", "cut off")
        self.offset, self.left = self.offset + count, self.left - count
        return data

    def number(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def target(self, dim: int) -> np.ndarray:
        return np.frombuffer(self.take(4 * dim, f"a target of {dim} numbers"), "<f4").astype(np.float32)
