"""Temporary storage of a build on disk: distinct rows, and the pairs that index them.

A row is a text, an embedding from a source, or both. Memory holds a few numbers per row and pair; texts, embeddings and
tokens are in files.
"""

from array import array
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import canonical
from .records import Place, Record

NONE = -1


class PairTable(NamedTuple):
    """N pairs as row numbers, with their premise groups."""

    input: NDArray[np.int64]  # [N], row numbers
    target: NDArray[np.int64]  # [N], row numbers
    group: NDArray[np.int64]  # [N], equal for pairs whose input texts are equal as `canonical` has them (without a text: the embeddings)


class Spool:
    """Rows and pairs in the order in which they were added; equal rows are stored once.

    Args:
        folder: where to write the files; existing ones are overwritten.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._texts = (folder / "texts").open("w+b")
        self._embeddings = (folder / "embeddings").open("w+b")
        self._tokens = (folder / "tokens").open("w+b")
        self._text_ends = array("q", [0])
        self._lengths = array("q")  # characters of a row's text; NONE: it has none
        self._embedding_at = array("q")  # number of a row's embedding; NONE: it has none
        self._given = 0
        self._row_of: dict[bytes, int] = {}
        self._group_of: dict[bytes, int] = {}
        self._pairs: tuple[array[int], ...] = (array("q"), array("q"), array("q"))
        self._seen: set[int] = set()
        self._token_ends = array("q", [0])
        self.dim: int | None = None  # size of the sources' embeddings; None: no source has any

    def close(self) -> None:
        for file in (self._texts, self._embeddings, self._tokens):
            with suppress(OSError):  # no room for what is thrown away with the folder
                file.close()

    @property
    def rows(self) -> int:
        return len(self._lengths)

    @property
    def has_tokens(self) -> bool:
        return self._token_ends[-1] > 0

    def add(self, place: Place, record: Record) -> bool:
        """Add a pair, whose sides each have a text or an embedding. Returns False if the same pair was added before.

        Raises:
            DataError: its embeddings are of another size than earlier ones.
        """
        for embedding in (record.input_embedding, record.target_embedding):
            if embedding is not None and self.dim not in (None, len(embedding)):
                raise place.error(
                    "embedding size", f"has an embedding of {len(embedding)} numbers, other sources {self.dim}"
                )
        input, group = self._add_row(record.input, record.input_embedding)
        target, _ = self._add_row(record.target, record.target_embedding)
        pair = input << 32 | target
        if pair in self._seen:
            return False
        self._seen.add(pair)
        for column, value in zip(self._pairs, (input, target, group), strict=True):
            column.append(value)
        if record.input_ids is not None and record.attention_mask is not None:
            # Five bytes per token, as in EFB files: all ids (4 bytes each), then all mask entries (1 byte each).
            self._tokens.write(record.input_ids.astype("<u4").tobytes() + record.attention_mask.tobytes())
            self._token_ends.append(self._token_ends[-1] + len(record.input_ids))
        else:
            self._token_ends.append(self._token_ends[-1])
        return True

    def pairs(self) -> PairTable:
        """All pairs, in the order in which they were added."""
        return PairTable(*(np.array(column, dtype=np.int64) for column in self._pairs))

    def lengths(self) -> NDArray[np.int64]:
        """The number of characters [R] of each row's text; NONE if it has none."""
        return np.array(self._lengths, dtype=np.int64)

    def given(self) -> NDArray[np.bool_]:
        """Whether each row [R] has an embedding from a source."""
        return np.array(self._embedding_at, dtype=np.int64) != NONE

    def text(self, row: int) -> str | None:
        if self._lengths[row] == NONE:
            return None
        start, end = self._text_ends[row], self._text_ends[row + 1]
        self._texts.seek(start)
        return self._texts.read(end - start).decode()

    def embedding(self, row: int) -> NDArray[np.float32]:
        """The source's embedding [E] of a row."""
        assert self.dim is not None
        self._embeddings.seek(4 * self.dim * self._embedding_at[row])
        return np.frombuffer(self._embeddings.read(4 * self.dim), dtype=np.float32)

    def tokens(self, pair: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """The source's ids and mask [T] of a pair; T is 0 if it had none."""
        start, end = self._token_ends[pair], self._token_ends[pair + 1]
        count = end - start
        self._tokens.seek(5 * start)
        data = self._tokens.read(5 * count)
        ids = np.frombuffer(data, "<u4", count) if count else np.zeros(0, np.uint32)
        return ids.astype(np.uint32), np.frombuffer(data, np.uint8, count, 4 * count) if count else np.zeros(
            0, np.uint8
        )

    def _add_row(self, text: str | None, embedding: NDArray[np.float32] | None) -> tuple[int, int]:
        """Add a row, unless an equal one exists; returns its number and the number of its premise group."""
        written = None if text is None else text.encode()
        text_key = b"" if written is None else blake2b(written, digest_size=16, person=b"text").digest()
        numbers = b"" if embedding is None else embedding.astype("<f4").tobytes()
        key = text_key + (blake2b(numbers, digest_size=16, person=b"embedding").digest() if numbers else b"-")
        row = self._row_of.get(key)
        if row is None:
            row = self._row_of[key] = self.rows
            if written is not None:
                self._texts.write(written)
            self._text_ends.append(self._text_ends[-1] + len(written or b""))
            self._lengths.append(NONE if text is None else len(text))
            if embedding is not None:
                self.dim = len(embedding)
                self._embeddings.write(numbers)
            self._embedding_at.append(NONE if embedding is None else self._given)
            self._given += embedding is not None
        premise = key if text is None else blake2b(canonical(text).encode(), digest_size=16, person=b"premise").digest()
        return row, self._group_of.setdefault(premise, len(self._group_of))
