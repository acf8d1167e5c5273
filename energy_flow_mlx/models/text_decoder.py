"""CubeToTextDecoder: a surface becomes a text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..nn import T5Decoder, T5Settings
from ..text.search import Search, search
from ..text.tokeniser import Tokeniser
from .prefix import prefix_layers, prefix_of
from .shapes import expect_shape


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """surface_dim: S. adapter_dim: the adapter's inner width, S // 2 in the PyTorch code. prefix: P, the vectors that the adapter makes of
    a surface, 1 in the PyTorch code. start, end: token ids."""

    surface_dim: int
    adapter_dim: int
    t5: T5Settings
    start: int = 0
    end: int = 1
    prefix: int = 1
    adapter_dropout: float = 0.1


@dataclass(frozen=True)
class Carried:
    """What a decoder's files hold and decoding does not need: the record text_decoder.json, and tensors (T5's encoder) by torch key."""

    record: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, mx.array] = field(default_factory=dict)


class CubeToTextDecoder(nn.Module):
    """Surfaces to texts.

        Linear(S, A) GELU LN Dropout(p) Linear(A, P d) -> P vectors, LN each -> a T5 decoder's whole encoder output

    `tokeniser` is needed by `decode` alone.
    """

    def __init__(self, settings: DecoderSettings) -> None:
        super().__init__()
        inner, dim = settings.adapter_dim, settings.t5.dim
        self.surface_adapter = prefix_layers(settings.surface_dim, inner, settings.prefix, dim, settings.adapter_dropout)
        self.decoder = T5Decoder(settings.t5)
        self.tokeniser: Tokeniser | None = None
        self.settings = settings
        self.carried = Carried()

    def __call__(self, surface: mx.array, ids: mx.array) -> mx.array:
        """surface [B, S], ids [B, T] that begin with the start token -> logits [B, T, V] of the token after each."""
        expect_shape("ids", ids, (surface.shape[0], None))
        return self.decoder(ids, self.adapt(surface))

    def adapt(self, surface: mx.array) -> mx.array:
        """surface [B, S] -> the prefix [B, P, d] that the decoder attends to."""
        expect_shape("surface", surface, (None, self.settings.surface_dim))
        return prefix_of(self.surface_adapter, surface, self.settings.prefix)

    def generate(self, surface: mx.array, settings: Search) -> list[list[int]]:
        """surface [B, S] -> B texts as token ids; see `text.search.search`.

        Raises:
            ValueError: surfaces of another size, or with NaN or infinity; more beams than half of the vocabulary.
        """
        prefix = self.adapt(surface)
        if not surface.shape[0]:
            return []
        finite = np.array(mx.isfinite(surface).all(axis=1))
        if not finite.all():
            raise ValueError(f"surface: row {int(np.argmin(finite))} holds NaN or infinity")
        step, cache = self.decoder.start(mx.repeat(prefix, settings.num_beams, axis=0), settings.max_length)
        size = self.settings.t5.vocab_size
        return search(step, cache, surface.shape[0], size, settings, start=self.settings.start, end=self.settings.end)

    def decode(self, surface: mx.array, settings: Search) -> list[str]:
        """surface [B, S] -> B texts.

        Raises:
            ValueError: as `generate`; or there is no tokeniser, or it has more entries than the token embedding.
        """
        tokeniser = self.fitting_tokeniser()
        # A T5 embedding has more rows than its tokeniser has entries: such a token has no text.
        known = tokeniser.vocab_size
        return [tokeniser.decode([id for id in ids if id < known]) for ids in self.generate(surface, settings)]

    def fitting_tokeniser(self) -> Tokeniser:
        """The tokeniser.

        Raises:
            ValueError: there is none, or it has more entries than the token embedding.
        """
        if self.tokeniser is None:
            raise ValueError(
                "text_decoder.tokeniser: None; convert with --decoder-tokenizer FILE, or put T5's tokenizer.json into the model folder as "
                "text_decoder_tokenizer.json"
            )
        size, rows = self.tokeniser.vocab_size, self.settings.t5.vocab_size
        if size > rows:
            raise ValueError(f"text_decoder.tokeniser: it has {size} vocabulary entries, the decoder has {rows}")
        return self.tokeniser
