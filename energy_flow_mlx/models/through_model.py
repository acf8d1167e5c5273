"""ThroughModel: the embeddings that a model returns for texts, as a teacher that correction can ask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .energy_flow import EnergyFlow, TextEmbedder


@dataclass(frozen=True)
class ThroughModel:
    """A teacher and a model of the copy task in a row: text -> embedding -> surface -> flows -> surface -> embedding.

    What the model returns for a text is near the text's own embedding, but other texts can be nearer to it. Of texts that have come the same
    way, the text itself is the nearest. So a text that came through the lattice is corrected with this in the teacher's stead.

    Args:
        model: trained on the copy task, whose output for a text stands for that text.
        teacher: the one that it was trained with. None: its own text encoder makes the surfaces; see `EnergyFlow.predict`.
        batch_size: texts whose flows run at a time.
    """

    model: EnergyFlow
    teacher: TextEmbedder | None
    batch_size: int = 64

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """N texts -> [N, E] of length 1. Raises as `EnergyFlow.embed`."""
        return self.model.embed(texts, self.teacher, batch_size=self.batch_size)
