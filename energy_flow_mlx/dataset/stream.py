"""Dataset folders as training data, read in batches from memory-mapped files; they may be larger than memory."""

import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config import check_data_fit
from ..data.corpus import TextPair
from ..data.source import PairBatch, PairData, PairTexts, check_index, check_indices
from ..files import digest
from ..strict_json import to_json
from ..text.tokeniser import TokenBatch, Tokeniser
from .build import Settings, build
from .folder import PARTS, DatasetFolder
from .formats import read_file
from .records import DataError, Faults

CACHE = "ENERGY_FLOW_CACHE"
_TEXTS = 100_000  # the most texts that a tokeniser is trained on


class InputTokens:
    """The tokens of pairs' inputs, truncated or padded to `max_length`: the source's, or else encoded from the text.

    Without a tokeniser, ids and mask are all 0.
    """

    def __init__(self, folder: DatasetFolder, tokeniser: Tokeniser | None, max_length: int) -> None:
        self._folder, self._tokeniser, self._max_length = folder, tokeniser, max_length
        # Some versions of tokenizers raise "Already borrowed" when one thread sets a length while another encodes.
        self._lock = threading.Lock()

    def of(self, pairs: NDArray[np.integer]) -> TokenBatch:
        """Ids and mask [B, T] of the pairs with the numbers `pairs` [B]."""
        batch = TokenBatch(*(np.zeros((len(pairs), self._max_length), np.int32) for _ in range(2)))
        if self._tokeniser is None:
            return batch
        without_tokens: list[int] = []
        texts: list[str] = []
        for place, pair in enumerate(pairs):
            tokens = self._folder.tokens(int(pair))
            if tokens is None:
                without_tokens.append(place)
                texts.append(self._folder.text(int(self._folder.input[pair])) or "")
                continue
            for row, values in ((batch.input_ids, tokens[0]), (batch.attention_mask, tokens[1])):
                kept = values[: self._max_length].astype(np.int32)
                if len(values) > self._max_length:
                    kept[-1] = values[-1]  # truncation keeps the closing token, such as [SEP]
                row[place, : len(kept)] = kept
        if texts:
            with self._lock:
                encoded = self._tokeniser.encode(texts, self._max_length)
            batch.input_ids[without_tokens] = encoded.input_ids
            batch.attention_mask[without_tokens] = encoded.attention_mask
        return batch


class FolderPairs(PairTexts):
    """One part of a dataset folder; implements `PairDataset`.

    Args:
        folder: the open folder.
        part: train, validation or test.
        tokens: shared by the parts.
    """

    def __init__(self, folder: DatasetFolder, part: str, tokens: InputTokens) -> None:
        self._folder, self._numbers, self._tokens = folder, folder.part(part), tokens

    @property
    def dim(self) -> int:
        return self._folder.dim

    def __len__(self) -> int:
        return len(self._numbers)

    def batch(self, indices: NDArray[np.integer]) -> PairBatch:
        """The pairs at `indices` [B], in that order.

        Raises:
            TypeError: `indices` is not a one-dimensional array of integers.
            IndexError: an index is outside 0..N-1.
        """
        indices = check_indices(indices, len(self))
        pairs = indices + self._numbers.start
        rows = np.concatenate([self._folder.input[pairs], self._folder.target[pairs]])
        inputs, targets = np.split(self._folder.embeddings(rows), 2)
        return PairBatch(inputs, targets, *self._tokens.of(pairs), indices)

    def texts(self, index: int) -> TextPair:
        """The pair of texts at `index`; a missing text is empty. IndexError when it is out of range."""
        pair = self._numbers[check_index(index, len(self))]
        return TextPair(
            *(self._folder.text(int(rows[pair])) or "" for rows in (self._folder.input, self._folder.target))
        )


def folder_data(
    path: Path, *, dim: int, vocab_size: int, max_length: int, tokeniser: Tokeniser | None = None
) -> PairData:
    """Open a dataset folder as training data.

    The tokeniser is the given one, else the folder's, else one trained on the training texts. If pairs have no input
    text, it is None, and training must do without the text loss.

    Args:
        path: the folder.
        dim, vocab_size: the model's E and the rows of its token embedding; the folder must fit both.
        max_length: T, to which inputs are truncated or padded.
        tokeniser: the tokeniser saved with the model, if any.

    Raises:
        FileNotFoundError, DataError: the folder is incomplete or damaged, or a part is empty.
        ConfigError: E or the vocabulary does not fit; the message gives both values.
    """
    folder = DatasetFolder(path)
    check_data_fit(vocab_size, dim, f"data {path}", embedding_dim=folder.dim)
    empty = [name for name in PARTS if not folder.sizes[name]]
    if empty:
        raise DataError(
            f"data {path} has no pairs in {', '.join(empty)}; build it with --validation and --test above 0",
            "does not fit",
        )
    if folder.about.get("pairs_without_input_text"):
        tokeniser = None
    else:
        stored = folder.tokeniser()
        if tokeniser is not None and stored is not None and folder.has_tokens and stored.fingerprint != tokeniser.fingerprint:
            raise DataError(
                f"data {path} stores the tokens of its inputs, of another tokeniser than the model's; accepted are its texts alone",
                "does not fit",
            )
        tokeniser = tokeniser or stored or Tokeniser.train(training_texts(folder, _TEXTS), vocab_size)
        check_data_fit(vocab_size, dim, f"data {path}: its tokeniser", vocab_size=tokeniser.vocab_size)
    tokens = InputTokens(folder, tokeniser, max_length)
    parts = [FolderPairs(folder, name, tokens) for name in PARTS]
    teacher = folder.about.get("teacher")
    name = f"{path} (teacher {teacher['name']})" if teacher else f"{path} (embeddings from its sources)"
    return PairData(parts[0], parts[1], parts[2], tokeniser, name, folder.fingerprint)


def file_data(
    path: Path, *, validation: int, test: int, seed: int, dim: int, vocab_size: int, max_length: int,
    tokeniser: Tokeniser | None = None,
) -> PairData:  # fmt: skip
    """Open a data file as training data: a dataset folder is built from it in the cache, unless it is there already.

    Texts without an embedding are embedded by the built-in teacher.

    Args:
        path: the file.
        validation, test: pairs to hold out, each at most a tenth of the file's.
        seed: of the split.
        dim, vocab_size, max_length, tokeniser: as in `folder_data`.

    Raises:
        As `build` and `folder_data`.
    """
    key = to_json([digest(path), path.suffix, validation, test, seed, dim], indent=None)
    folder = cache_folder() / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not (folder / "dataset.json").is_file():
        count = sum(1 for _ in read_file(path, Faults()))
        if count < 10:
            raise DataError(
                f"data {path} holds {count} pairs, but a tenth of a file is held out for validation and a tenth for the test: it takes "
                "10 pairs or more, or a folder built with --validation 1 --test 1",
                "does not fit",
            )
        validation, test = min(validation, count // 10), min(test, count // 10)
        _check_writable(folder.parent)
        build(Settings(sources=(str(path),), validation=validation, test=test, seed=seed, dim=dim), folder, quiet=True)
    data = folder_data(folder, dim=dim, vocab_size=vocab_size, max_length=max_length, tokeniser=tokeniser)
    return data._replace(name=data.name.replace(str(folder), str(path), 1))


def _check_writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise DataError(
            f"{cache}: what a data file becomes cannot be kept here ({error.strerror}); the environment variable {CACHE} names "
            "another folder for it",
            "no cache",
        ) from error


def cache_folder() -> Path:
    """Where `file_data` builds its folders: ENERGY_FLOW_CACHE, or a folder in XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get(CACHE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "energy_flow_mlx" / "datasets"


def training_texts(folder: DatasetFolder, most: int) -> Sequence[str]:
    """The distinct texts of the training part: all of them, or at most `most`, evenly spaced."""
    train = folder.part("train")
    rows = np.unique(np.concatenate([rows[train.start : train.stop] for rows in (folder.input, folder.target)]))
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
    return [text for row in rows if (text := folder.text(int(row))) is not None]
