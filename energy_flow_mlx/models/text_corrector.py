"""TextCorrector: a text becomes one whose embedding is nearer to the wanted one (Morris et al. 2023, arXiv 2310.06816)."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from ..nn import PositionalEncoding, T5Decoder, T5Settings, TransformerEncoder
from ..ops.embedding import embedding
from ..text.rows import NO_TOKEN, token_rows
from ..text.search import Search, search_all
from ..text.tokeniser import Tokeniser
from .prefix import prefix_layers, prefix_of
from .shapes import expect_shape

_ALIKE = 1e-6  # cosines that differ less are rounding


@dataclass(frozen=True, kw_only=True)
class CorrectorSettings:
    """embedding_dim: E. max_length: T, the tokens that are read of a text. adapter_dim, prefix: inner width of the adapters, and the
    vectors that each makes of an embedding. t5: sizes of the decoder, and of the encoder too. start, end: token ids."""

    embedding_dim: int
    max_length: int
    adapter_dim: int
    prefix: int
    t5: T5Settings
    start: int
    end: int


class TextCorrector(nn.Module):
    """The wanted embedding e, a text and its embedding ê, to the logits of a better text.

        MLP(e), MLP(ê), MLP(e - ê): P vectors each;  tokens of the text + positions: T vectors
        all of them -> transformer encoder -> T5 decoder
    """

    def __init__(self, settings: CorrectorSettings) -> None:
        super().__init__()
        t5 = settings.t5
        self.adapters = [
            prefix_layers(settings.embedding_dim, settings.adapter_dim, settings.prefix, t5.dim, t5.dropout) for _ in range(3)
        ]
        self.positions = PositionalEncoding(settings.max_length, t5.dim)
        self.encoder = TransformerEncoder(t5.layers, t5.dim, t5.heads, t5.feedforward_dim, t5.dropout)
        self.decoder = T5Decoder(t5)
        self.settings = settings

    def __call__(self, wanted: mx.array, found: mx.array, hypothesis: mx.array, ids: mx.array) -> mx.array:
        """e and ê [B, E], the text's tokens [B, T] (NO_TOKEN after its end), ids [B, L] that begin with the start token -> logits
        [B, L, V] of the token after each."""
        return self.decoder(ids, self.read(wanted, found, hypothesis))

    def read(self, wanted: mx.array, found: mx.array, hypothesis: mx.array) -> mx.array:
        """e and ê [B, E] and tokens [B, T] -> [B, 3 P + T, d], what the decoder attends to."""
        for name, array in (("wanted", wanted), ("found", found)):
            expect_shape(name, array, (None, self.settings.embedding_dim))
        # Embeddings have length 1: so scaled their entries are of the size that layers are drawn for.
        scale = math.sqrt(self.settings.embedding_dim)
        given = (wanted, found, wanted - found)
        vectors = [prefix_of(layers, scale * x, self.settings.prefix) for layers, x in zip(self.adapters, given, strict=True)]
        tokens = self.positions(embedding(self.decoder.token_embedding.weight, mx.maximum(hypothesis, 0)))
        known = mx.broadcast_to(mx.array(True), (hypothesis.shape[0], 3 * self.settings.prefix))
        return self.encoder(mx.concatenate([*vectors, tokens], axis=1), mx.concatenate([known, hypothesis >= 0], axis=1))

    def candidates(self, wanted: mx.array, found: mx.array, hypothesis: mx.array, settings: Search) -> list[list[list[int]]]:
        """Better texts as token ids, for each as many as beams; see `text.search.search_all`."""
        read = self.read(wanted, found, hypothesis)
        step, cache = self.decoder.start(mx.repeat(read, settings.num_beams, axis=0), settings.max_length)
        size = self.settings.t5.vocab_size
        return search_all(step, cache, wanted.shape[0], size, settings, start=self.settings.start, end=self.settings.end)

    def neighbours(self, wanted: mx.array, found: mx.array, hypothesis: mx.array, count: int) -> list[list[list[int]]]:
        """Texts as token ids that differ from a text in one token: with one left out, or with one of the `count` likeliest in a place, in
        the stead of what is there or before it."""
        rows = np.array(hypothesis)
        logits = self(wanted, found, hypothesis, mx.maximum(hypothesis[:, :-1], 0))  # of the token at each place but the first
        likely = np.array(mx.argpartition(-logits, count, axis=-1)[..., :count])  # [B, T - 1, count]
        return [list(_one_apart(row[row != NO_TOKEN].tolist(), tokens.tolist(), len(row))) for row, tokens in zip(rows, likely, strict=True)]


def _one_apart(ids: list[int], likely: list[list[int]], most: int) -> Iterator[list[int]]:
    """Of a text with its start and its end, at most `most` tokens long."""
    for place in range(1, len(ids)):
        before, after = ids[:place], ids[place:]
        for token in likely[place - 1]:
            if len(ids) < most:
                yield [*before, token, *after]
            if len(after) > 1:  # the end stays
                yield [*before, token, *after[1:]]
        if len(after) > 1:
            yield [*before, *after[1:]]


def correct(
    corrector: TextCorrector,
    tokeniser: Tokeniser,
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    wanted: NDArray[np.float32],
    texts: Sequence[str],
    settings: Search,
    *,
    rounds: int,
    neighbours: int,
) -> list[str]:
    """Texts whose embeddings are as near to the wanted ones as some rounds bring them. In a round the candidates of all beams are
    embedded, and the nearest one stays. Where none is nearer than the text so far, those are tried that differ from it in one token; and
    where none of these is, or where nothing can be nearer, the text is done.

    Args:
        embed: N texts -> [N, E], rows of length 1, as the wanted ones were made.
        wanted: [N, E], of length 1.
        texts: N, to begin with.
        settings: how candidates are looked for.
        rounds: at most.
        neighbours: likeliest tokens that are put in each place, and between any two; 0: no such texts are tried.
    """
    best = list(texts)
    nearest = embed(best) if best else np.zeros_like(wanted)

    def given(places: Sequence[int]) -> tuple[mx.array, mx.array, mx.array]:
        rows = token_rows(tokeniser, [best[at] for at in places], corrector.settings.max_length)
        return mx.array(wanted[places]), mx.array(nearest[places]), mx.array(rows)

    def take(places: Sequence[int], offered: Sequence[Sequence[list[int]]]) -> list[int]:
        """The places whose text became better by what is offered for it."""
        known = tokeniser.vocab_size
        written = [list(dict.fromkeys(tokeniser.decode([id for id in ids if id < known]) for ids in each)) for each in offered]
        vectors = embed([text for each in written for text in each])
        improved, start = [], 0
        for at, each in zip(places, written, strict=True):
            own = vectors[start : start + len(each)]
            start += len(each)
            first = int(np.argmax(own @ wanted[at])) if each else 0
            if each and own[first] @ wanted[at] > nearest[at] @ wanted[at] + _ALIKE:
                best[at], nearest[at] = each[first], own[first]
                improved.append(at)
        return improved

    def imperfect(places: Sequence[int]) -> list[int]:
        return [at for at in places if nearest[at] @ wanted[at] < 1 - _ALIKE]

    open_ = imperfect(range(len(best)))
    for _ in range(rounds):
        if not open_:
            break
        improved = take(open_, corrector.candidates(*given(open_), settings))
        stuck = [at for at in open_ if at not in improved]
        if neighbours and stuck:
            improved += take(stuck, corrector.neighbours(*given(stuck), neighbours))
        open_ = imperfect(sorted(improved))
    return best
