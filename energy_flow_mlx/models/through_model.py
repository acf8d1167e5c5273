"""Correction in the copy task: towards the text for which the model returns what it returned for the wanted one."""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..text.search import Search
from .energy_flow import NEIGHBOURS, EnergyFlow, TextEmbedder
from .shapes import Array, unit_rows

# A cosine of so much below 1 is the same embedding: `tiny` in bfloat16 gives one text 0.99996 where it is alone and where it is among 64.
_SAME = 1e-3


class ThroughModel:
    """Embeds texts as a model of the copy task returns them: text -> surface -> flows -> surface -> embedding.

    What the model returns for a text is near the text's own embedding, but other texts can be nearer to it. To what is returned for a text,
    nothing is nearer than what is returned for the same text.

    Args:
        model: trained on the copy task, whose output for a text stands for that text.
        returned: B texts -> [B, E], what the model returns for them, on the way that the wanted texts went.
        batch_size: texts whose flows run at a time.
    """

    def __init__(self, model: EnergyFlow, returned: Callable[[Sequence[str]], mx.array], batch_size: int) -> None:
        self.model, self.returned, self.batch_size = model, returned, batch_size

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """N texts, at least one -> [N, E], rows of length 1."""
        starts = range(0, len(texts), self.batch_size)
        return np.concatenate([unit_rows(self.returned(texts[at : at + self.batch_size])) for at in starts])

    def correct(
        self, texts: Sequence[str], wanted: Array, teacher: TextEmbedder | None, *, rounds: int, neighbours: int = NEIGHBOURS,
        search: Search | None = None,
    ) -> list[str]:  # fmt: skip
        """Texts for which the model returns the wanted embeddings, or else texts whose own embeddings are near to them.

        Two corrections, each of so many rounds at most: by the teacher's embeddings of the candidates, and from there by what the model returns
        for them. What the second finds counts where the model returns the same for it; where it does not, because the rounds were too few or
        the lattice keeps too little to tell texts apart, the first is the better guess.

        Args:
            texts: B texts to begin with, as `EnergyFlow.decode` gives them.
            wanted: [B, E], what the model returned for the wanted texts.
            teacher: None: there is only the second correction.
            rounds, neighbours, search: as `EnergyFlow.correct` takes them.

        Raises:
            ValueError: as `EnergyFlow.correct`.
        """
        correct = partial(self.model.correct, rounds=rounds, neighbours=neighbours, search=search)
        near = list(texts) if teacher is None else correct(texts, wanted, teacher)
        found = correct(near, wanted, self)
        if teacher is None or not found:
            return found
        same = np.sum(self.embed(found) * unit_rows(wanted), axis=1) > 1 - _SAME
        return [text if right else guess for text, right, guess in zip(found, same, near, strict=True)]
