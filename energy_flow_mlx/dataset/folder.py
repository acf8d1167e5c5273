"""The dataset folder: memory-mapped shards of texts with their embeddings, and pairs that index their rows.

dataset.json             counts, parts, teacher, sources, what was left out, hashes; written last
rows-00000.safetensors   embedding F32 [n, E]; text U8 [bytes] (UTF-8), text_offsets I64 [n + 1]; has_text U8 [n]
pairs.safetensors        input U32 [N], target U32 [N]: row numbers; train, then validation, then test
tokens.safetensors       if the sources had tokens: ids U32 [L], mask U8 [L], offsets I64 [N + 1]; L tokens in all
tokenizer.json           if --tokenizer was given
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import check_int
from ..files import digest
from ..strict_json import read_json
from ..text.tokeniser import Tokeniser
from .arrays import open_arrays
from .records import DataError, Place, Placed, Record

FORMAT = 1
PARTS = ("train", "validation", "test")
_MOST = 2**32  # rows are numbered in uint32


def shard_name(number: int) -> str:
    return f"rows-{number:05d}.safetensors"


class Shard(NamedTuple):
    """The arrays of rows-NNNNN.safetensors."""

    embedding: NDArray[np.float32]  # [n, E]
    text: NDArray[np.uint8]  # [bytes], UTF-8
    text_offsets: NDArray[np.int64]  # [n + 1], where each text begins, and the end of the last
    has_text: NDArray[np.uint8]  # [n], 0 or 1


class DatasetFolder:
    """An open dataset folder. Embeddings and texts are read on access.

    Attributes:
        dim: E; rows: the number of rows; sizes: the number of pairs of each part.
        input, target: row numbers [N] of all pairs, uint32.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: a file is damaged, or the files contradict each other; names the file and what is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about = read_about(path)
        try:
            self.dim, self.rows, self.shard_rows = (
                check_int(name, self.about[name], 1, _MOST) for name in ("dim", "rows", "shard_rows")
            )
            self.sizes = {name: check_int(name, self.about["pairs"][name], 0, _MOST) for name in PARTS}
            self.fingerprint = str(self.about["fingerprint"])
            self._hashes = dict(self.about["files"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path / 'dataset.json'}: lacks or misstates {error}", "damaged") from error
        starts = range(0, self.rows, self.shard_rows)
        self._shards = [
            self._open_shard(number, min(self.shard_rows, self.rows - start)) for number, start in enumerate(starts)
        ]
        count = sum(self.sizes.values())
        pairs, _ = open_arrays(path / "pairs.safetensors", {"input": "U32", "target": "U32"})
        self.input, self.target = pairs["input"], pairs["target"]
        for name, array in pairs.items():
            self._expect("pairs.safetensors", name, array, (count,))
            if array.size and array.max() >= self.rows:
                raise DataError(
                    f"{path / 'pairs.safetensors'}: {name} names row {array.max()} of {self.rows}", "damaged"
                )
        self._tokens = self._open_tokens(count)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name} {size:,}" for name, size in self.sizes.items())
        return f"<DatasetFolder {self.path}: {parts} pairs, {self.rows:,} texts, E = {self.dim}>"

    def part(self, name: str) -> range:
        """The pair numbers of train, validation or test."""
        start = sum(self.sizes[before] for before in PARTS[: PARTS.index(name)])
        return range(start, start + self.sizes[name])

    def embeddings(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        """The embeddings [B, E] of rows [B]."""
        found = np.empty((len(rows), self.dim), np.float32)
        shards, places = np.divmod(rows.astype(np.int64), self.shard_rows)
        for number in np.unique(shards):
            selected = shards == number
            found[selected] = self._shards[number].embedding[places[selected]]
        return found

    def text(self, row: int) -> str | None:
        """The text of a row; None if it has none."""
        number, place = divmod(int(row), self.shard_rows)
        shard = self._shards[number]
        if not shard.has_text[place]:
            return None
        start, end = int(shard.text_offsets[place]), int(shard.text_offsets[place + 1])
        if not 0 <= start <= end <= len(shard.text):
            raise DataError(
                f"{self.path / shard_name(number)}: text {place} has offsets {start} to {end}, the file has {len(shard.text)} bytes",
                "damaged",
            )
        try:
            return shard.text[start:end].tobytes().decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path / shard_name(number)}: text {place} is not UTF-8: {error.reason}", "damaged"
            ) from error

    @property
    def has_tokens(self) -> bool:
        """Whether some pairs came with tokens of their sources."""
        return self._tokens is not None

    def tokens(self, pair: int) -> tuple[NDArray[np.uint32], NDArray[np.uint8]] | None:
        """The source's ids and mask [T] of a pair's input; None if it had none."""
        if self._tokens is None:
            return None
        start, end = int(self._tokens["offsets"][pair]), int(self._tokens["offsets"][pair + 1])
        return (self._tokens["ids"][start:end], self._tokens["mask"][start:end]) if start < end else None

    def tokeniser(self) -> Tokeniser | None:
        """The tokeniser in the folder, if there is one."""
        path = self.path / "tokenizer.json"
        return Tokeniser.from_file(path) if path.is_file() else None

    def verify(self) -> list[str]:
        """The names of files whose SHA-256 differs from that in dataset.json."""
        return [
            name
            for name, sha in self._hashes.items()
            if not (self.path / name).is_file() or digest(self.path / name) != sha
        ]

    def _open_shard(self, number: int, count: int) -> Shard:
        name = shard_name(number)
        dtypes = {"embedding": "F32", "text": "U8", "text_offsets": "I64", "has_text": "U8"}
        arrays, _ = open_arrays(self.path / name, dtypes)
        for array, shape in {
            "embedding": (count, self.dim),
            "text_offsets": (count + 1,),
            "has_text": (count,),
        }.items():
            self._expect(name, array, arrays[array], shape)
        return Shard(**arrays)

    def _open_tokens(self, count: int) -> dict[str, NDArray[Any]] | None:
        name = "tokens.safetensors"
        if not self.about.get("tokens"):
            return None
        arrays, _ = open_arrays(self.path / name, {"ids": "U32", "mask": "U8", "offsets": "I64"})
        self._expect(name, "offsets", arrays["offsets"], (count + 1,))
        self._expect(name, "mask", arrays["mask"], arrays["ids"].shape)
        if (
            (np.diff(arrays["offsets"]) < 0).any()
            or arrays["offsets"][0] != 0
            or arrays["offsets"][-1] != len(arrays["ids"])
        ):
            raise DataError(
                f"{self.path / name}: offsets do not rise from 0 to the {len(arrays['ids'])} ids", "damaged"
            )
        return arrays

    def _expect(self, file: str, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        if array.shape != shape:
            raise DataError(
                f"{self.path / file}: {name} has shape {list(array.shape)}, dataset.json requires {list(shape)}",
                "damaged",
            )


def read_about(path: Path) -> dict[str, Any]:
    """The contents of dataset.json. Raises as `DatasetFolder`."""
    file = path / "dataset.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a finished build writes it into its dataset folder")
    try:
        about = read_json(file)
    except ValueError as error:  # the message names the file
        raise DataError(str(error), "damaged") from error
    if about.get("format") != FORMAT:
        raise DataError(f"{file}: unknown format {about.get('format')!r}; this version reads {FORMAT}", "damaged")
    return about


def read_folder(path: Path, parts: tuple[str, ...] = PARTS) -> Iterator[Placed]:
    """The pairs of a dataset folder as records."""
    folder = DatasetFolder(path)
    for name in parts:
        for pair in folder.part(name):
            rows = np.array([folder.input[pair], folder.target[pair]])
            embeddings = folder.embeddings(rows)
            ids, mask = folder.tokens(pair) or (None, None)
            yield (
                Place(path, "pair", pair),
                Record(folder.text(rows[0]), folder.text(rows[1]), ids, mask, embeddings[0], embeddings[1]),
            )
