"""Text -> surface -> flows -> surface -> text, and how near what came back is to what was meant."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from ..data.teacher import Teacher
from ..models.energy_flow import NEIGHBOURS, EnergyFlow, EnergyFlowOutput
from ..models.shapes import unit_rows
from ..models.through_model import ThroughModel
from ..text.search import Search
from .texts import is_blank


class Returned(NamedTuple):
    """generated: the text that came back for `text`. cut: only the beginning of `text` went in.

    cosine: between the embedding that the model reads off the flows' surface, which is what was meant, and the teacher's embedding of
    `generated`; None without a teacher, or where nothing came back.
    """

    text: str
    generated: str
    cosine: float | None
    cut: bool


class RoundTrip:
    """Sends texts through a model and back.

    Args:
        model: with a text decoder, in evaluation mode.
        teacher: embeds what came back, and candidates of correction; and what goes in, for a model whose output is what it adds to its input.
        search: how texts are looked for.
        max_length: tokens of a text that the text encoder reads.
        rounds: of correction, at most; takes a model with a text corrector, and `copies` or a teacher.
        neighbours: as `EnergyFlow.correct` takes them.
        copies: of a model of the copy task, so many texts go through it at a time to correct by `ThroughModel`; 0: the task was another.
    """

    def __init__(
        self, model: EnergyFlow, teacher: Teacher | None, search: Search, max_length: int, rounds: int = 0, neighbours: int = NEIGHBOURS,
        *, copies: int = 0,
    ) -> None:  # fmt: skip
        self._model, self._teacher, self._search, self._max_length = model, teacher, search, max_length
        self._rounds, self._neighbours = rounds, neighbours
        self._correct = ThroughModel(model, lambda some: self._sent(some).embedding, copies).correct if copies else model.correct

    def __call__(self, texts: Sequence[str]) -> list[Returned]:
        """N texts, none of them empty.

        Raises:
            ValueError: the model has no tokeniser or no text decoder, or its decoder has none; or as `EnergyFlow.correct`.
        """
        model = self._model
        there = self._sent(texts)
        generated = model.decode(there.surface, search=self._search)
        if self._rounds:
            generated = self._correct(
                generated, there.embedding, self._teacher, rounds=self._rounds, neighbours=self._neighbours, search=self._search
            )
        tokens = model.text_encoder.fitting_tokeniser().encode(texts, self._max_length + 1)
        cut = [bool(mask.all()) for mask in tokens.attention_mask]
        cosines = self._cosines(there.embedding, generated)
        return [Returned(*row) for row in zip(texts, generated, cosines, cut, strict=True)]

    def _sent(self, texts: Sequence[str]) -> EnergyFlowOutput:
        model = self._model
        surface = model.text_encoder.encode(texts, self._max_length).astype(mx.float32)
        return model.from_surface(surface, self._embed(texts) if model.config.input_residual else None)

    def _embed(self, texts: Sequence[str]) -> mx.array:
        """[N, E]; zeros without a teacher, when nothing is compared with what is made of them."""
        if self._teacher is None:
            return mx.zeros((len(texts), self._model.config.embedding_dim))
        return mx.array(self._teacher.embed(texts))

    def _cosines(self, meant: mx.array, generated: Sequence[str]) -> list[float | None]:
        if self._teacher is None:
            return [None] * len(generated)
        products = np.sum(unit_rows(meant) * unit_rows(self._teacher.embed(generated)), axis=1)
        return [None if is_blank(text) else float(cosine) for text, cosine in zip(generated, products, strict=True)]
