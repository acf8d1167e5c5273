"""A data set whose batches also hold the tokens of the target texts, which a text decoder learns to write."""

import copy

import numpy as np
from numpy.typing import NDArray

from ..text.rows import token_rows
from ..text.tokeniser import Tokeniser
from .corpus import TextPair
from .source import PairBatch, PairData, PairDataset, PairTexts


class WithTargetTokens(PairTexts):
    """`data` with `target_ids` in its batches."""

    def __init__(self, data: PairDataset, tokeniser: Tokeniser, max_length: int) -> None:
        # A copy: batches are made in a thread, and the library refuses to set a length while another thread uses the tokeniser.
        self._data, self._tokeniser, self._max_length = data, copy.deepcopy(tokeniser), max_length

    @property
    def dim(self) -> int:
        return self._data.dim

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: NDArray[np.integer]) -> PairBatch:
        """The pairs at `indices` [B], in that order. Errors are those of the data set."""
        batch = self._data.batch(indices)
        targets = [self._data.texts(int(index)).target for index in batch.indices]
        return batch._replace(target_ids=token_rows(self._tokeniser, targets, self._max_length))

    def texts(self, index: int) -> TextPair:
        return self._data.texts(index)


def with_target_tokens(data: PairData, max_length: int) -> PairData:
    """All three parts of `data` so.

    Raises:
        ValueError: the data have no texts.
    """
    tokeniser = data.tokeniser
    if tokeniser is None:
        raise ValueError(f"text_decoder_loss_weight must be 0 with {data.name}, which has no texts")
    train, validation, test = (WithTargetTokens(part, tokeniser, max_length) for part in data[:3])
    return data._replace(train=train, validation=validation, test=test)
