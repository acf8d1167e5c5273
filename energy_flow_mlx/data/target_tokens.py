"""A data set whose batches also hold the tokens of the target texts, which a text decoder learns to write."""

import copy

import numpy as np
from numpy.typing import NDArray

from ..text.rows import token_rows
from ..text.tokeniser import Tokeniser
from .source import PairBatch, PairData, PairDataset, WrappedPairs


class WithTargetTokens(WrappedPairs):
    """`pairs` with `target_ids` in their batches."""

    def __init__(self, pairs: PairDataset, tokeniser: Tokeniser, max_length: int) -> None:
        super().__init__(pairs)
        # A copy: batches are made in a thread, and the library refuses to set a length while another thread uses the tokeniser.
        self._tokeniser, self._max_length = copy.deepcopy(tokeniser), max_length

    def batch(self, indices: NDArray[np.integer]) -> PairBatch:
        """The pairs at `indices` [B], in that order. Errors are those of the data set."""
        batch = self._pairs.batch(indices)
        targets = [self._pairs.texts(int(index)).target for index in batch.indices]
        return batch._replace(target_ids=token_rows(self._tokeniser, targets, self._max_length))


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
