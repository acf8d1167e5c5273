"""The data interface of training: batches of embeddings and tokens by index, and the order of the indices."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ..checks import check_int
from ..text.tokeniser import TokenBatch, Tokeniser
from .corpus import TextPair, generate_pairs, split_pairs
from .permute import seeded_order
from .teacher import HashedNgramTeacher, Teacher


class PairBatch(NamedTuple):
    """B pairs with the tokens of their input texts."""

    input_embedding: NDArray[np.float32]  # [B, E]
    target_embedding: NDArray[np.float32]  # [B, E]
    input_ids: NDArray[np.int32]  # [B, T]
    attention_mask: NDArray[np.int32]  # [B, T]
    indices: NDArray[np.int64]  # [B], index of each pair in the data set
    target_ids: NDArray[np.int32] | None = None  # [B, T], tokens of the target texts, where a text decoder learns


class PairDataset(Protocol):
    """Pairs of texts with their embeddings, in a fixed order."""

    @property
    def dim(self) -> int:
        """Size of an embedding, E."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.integer]) -> PairBatch:
        """The pairs at `indices` [B], in that order. IndexError when one is out of range."""
        ...

    def texts(self, index: int) -> TextPair:
        """The pair of texts at `index`. IndexError when it is out of range."""
        ...


class PairTexts(PairDataset):
    """What a data set shows in a notebook: itself in a line, and its texts by number."""

    @overload
    def __getitem__(self, index: int) -> TextPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TextPair]: ...
    def __getitem__(self, index: int | slice) -> TextPair | list[TextPair]:
        """The pair of texts at `index`, counted from the end if it is negative, or those of a slice."""
        if isinstance(index, slice):
            return [self.texts(at) for at in range(*index.indices(len(self)))]
        index = operator.index(index)
        return self.texts(index + len(self) if -len(self) <= index < 0 else index)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self):,} pairs, E = {self.dim}>"


class WrappedPairs(PairTexts):
    """Base of a data set that is `pairs` but for what it gives of them."""

    def __init__(self, pairs: PairDataset) -> None:
        self._pairs = pairs

    @property
    def dim(self) -> int:
        return self._pairs.dim

    def __len__(self) -> int:
        return len(self._pairs)

    def texts(self, index: int) -> TextPair:
        return self._pairs.texts(index)


class PairData(NamedTuple):
    """The parts of a data set, and its tokeniser."""

    train: PairDataset
    validation: PairDataset
    test: PairDataset
    tokeniser: Tokeniser | None  # None: pairs without texts
    name: str  # source, seed and teacher
    fingerprint: str = ""  # identifies the contents: training resumes only on the data set that it started with


class ArrayPairs(PairTexts):
    """A data set in memory.

    Args:
        pairs: N pairs of texts.
        input_embedding, target_embedding: [N, E], finite.
        tokens: ids and mask [N, T] of the input texts.

    Raises:
        ValueError: shapes disagree, or an embedding is not finite; the message names the argument.
    """

    def __init__(
        self,
        pairs: Sequence[TextPair],
        input_embedding: NDArray[np.float32],
        target_embedding: NDArray[np.float32],
        tokens: TokenBatch,
    ) -> None:
        self._pairs = list(pairs)
        self._input = _embeddings("input_embedding", input_embedding, len(self._pairs))
        self._target = _embeddings("target_embedding", target_embedding, len(self._pairs))
        if self._input.shape != self._target.shape:
            raise ValueError(
                f"target_embedding {list(self._target.shape)} must have the shape of "
                f"input_embedding {list(self._input.shape)}"
            )
        for name, array in tokens._asdict().items():
            if array.ndim != 2 or array.shape != (len(self._pairs), tokens.input_ids.shape[-1]):
                raise ValueError(
                    f"tokens.{name} must be [{len(self._pairs)}, T] like the other, got {list(array.shape)}"
                )
        self._tokens = tokens

    @classmethod
    def embed(
        cls, pairs: Sequence[TextPair], teacher: Teacher, tokeniser: Tokeniser, max_length: int
    ) -> "ArrayPairs":
        """Embed and tokenise pairs of texts; `max_length` is T."""
        inputs, targets = [pair.input for pair in pairs], [pair.target for pair in pairs]
        return cls(pairs, teacher.embed(inputs), teacher.embed(targets), tokeniser.encode(inputs, max_length))

    @property
    def dim(self) -> int:
        return int(self._input.shape[1])

    def __len__(self) -> int:
        return len(self._pairs)

    def batch(self, indices: NDArray[np.integer]) -> PairBatch:
        """The pairs at `indices` [B], in that order.

        Raises:
            TypeError: `indices` is not a one-dimensional array of integers.
            IndexError: an index is outside 0..N-1.
        """
        indices = check_indices(indices, len(self))
        return PairBatch(
            self._input[indices],
            self._target[indices],
            self._tokens.input_ids[indices],
            self._tokens.attention_mask[indices],
            indices,
        )

    def texts(self, index: int) -> TextPair:
        return self._pairs[check_index(index, len(self))]


def check_indices(indices: Any, count: int) -> NDArray[np.int64]:
    """`indices` [B] as int64, all in 0..count-1. Raises TypeError and IndexError, as `ArrayPairs.batch`."""
    indices = np.asarray(indices)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise TypeError(f"indices must be integers [B], got {indices.dtype} {list(indices.shape)}")
    outside = (indices < 0) | (indices >= count)
    if outside.any():
        raise IndexError(f"indices must be from 0 to {count - 1}, got {indices[outside][0]}")
    return indices.astype(np.int64)


def check_index(index: int, count: int) -> int:
    """`index`, in 0..count-1.

    Raises:
        IndexError: it is outside.
    """
    if not 0 <= index < count:
        raise IndexError(f"index must be from 0 to {count - 1}, got {index}")
    return index


class Order(Protocol):
    """Which pairs a step takes."""

    def indices(self, step: int) -> NDArray[np.int64]:
        """The indices [B] of step `step`, counted from 0."""
        ...


class EpochOrder:
    """The pairs of each training step: a pure function of (seed, step), so that resuming needs only the step.

    Each epoch is a new permutation of all pairs. The incomplete last batch of an epoch, `count % batch_size` pairs, is
    dropped so that every batch has the same shape; which pairs are dropped changes with the epoch.

    Args:
        count: pairs in the data set.
        batch_size: pairs in a step, at most `count`.
        seed: 0 or more.

    Raises:
        TypeError, ValueError: an argument is not an integer or is out of range.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = check_int("count", count, 1)
        self.batch_size = check_int("batch_size", batch_size, 1)
        self.seed = check_int("seed", seed, 0)
        if self.batch_size > self.count:
            raise ValueError(
                f"batch_size must be at most the {self.count} pairs of the data set, got {self.batch_size}"
            )
        self.steps_per_epoch = self.count // self.batch_size
        self._cached: tuple[int, NDArray[np.int64]] | None = None

    def indices(self, step: int) -> NDArray[np.int64]:
        """The indices [batch_size] of step `step`. Steps count from 0 and do not restart with an epoch."""
        epoch, position = divmod(check_int("step", step, 0), self.steps_per_epoch)
        start = position * self.batch_size
        return self._permutation(epoch)[start : start + self.batch_size].copy()

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, seeded_order(self.count, self.seed, epoch)
        return self._cached[1]


def built_in_data(
    train: int,
    validation: int,
    test: int,
    seed: int,
    dim: int,
    vocab_size: int,
    max_length: int,
    tokeniser: Tokeniser | None = None,
) -> PairData:
    """The built-in corpus, embedded by the hashed n-gram teacher. Its parts share no premise, but may share hypotheses.

    Args:
        train, validation, test: pairs in each part, at least 1 each.
        seed: of the sentences and the split; the teacher does not depend on it.
        dim: size of an embedding, E.
        vocab_size: the most entries of the tokeniser that is trained on the training part.
        max_length: tokens of an input, T.
        tokeniser: the tokeniser of a checkpoint, used instead of training one; `vocab_size` is then not used.

    Raises:
        TypeError, ValueError: an argument is not an integer or is out of range.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    total = sum(check_int(name, size, 1) for name, size in sizes.items())
    splits = split_pairs(generate_pairs(total, seed), validation, test, seed)
    if tokeniser is None:
        tokeniser = Tokeniser.train([text for pair in splits.train for text in pair], vocab_size)
    teacher = HashedNgramTeacher(dim)
    parts = [ArrayPairs.embed(pairs, teacher, tokeniser, max_length) for pairs in splits]
    name = f"builtin (seed {seed}, teacher {teacher.name})"
    return PairData(parts[0], parts[1], parts[2], tokeniser, name, fingerprint=name)


def _embeddings(name: str, array: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    array = np.asarray(array, dtype=np.float32)
    if array.ndim != 2 or array.shape[0] != count:
        raise ValueError(f"{name} must be [{count}, E], one row per pair, got {list(array.shape)}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise ValueError(f"{name}: row {int(np.argmin(finite))} holds NaN or infinity")
    return array
