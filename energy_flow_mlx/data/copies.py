"""The copy task: each pair's input is its target, so that a model is judged by how much of a text it brings back."""

import numpy as np
from numpy.typing import NDArray

from .corpus import TextPair
from .source import PairBatch, PairData, WrappedPairs


class Copies(WrappedPairs):
    """The inputs of `pairs`, each its own target; implements `PairDataset`."""

    def batch(self, indices: NDArray[np.integer]) -> PairBatch:
        """As the batch of `pairs`, with its inputs for targets."""
        batch = self._pairs.batch(indices)
        return batch._replace(target_embedding=batch.input_embedding)

    def texts(self, index: int) -> TextPair:
        """As the texts of `pairs`, with the input for target."""
        text = self._pairs.texts(index).input
        return TextPair(text, text)


def copied(data: PairData) -> PairData:
    """The data of the copy task: the same split and tokeniser, under a name and a fingerprint of their own."""
    return data._replace(
        train=Copies(data.train),
        validation=Copies(data.validation),
        test=Copies(data.test),
        name=f"{data.name}, copied",
        fingerprint=f"{data.fingerprint}, copied",
    )
