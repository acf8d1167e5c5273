"""TextToCubeEncoder: a text becomes a surface."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from ..checks import check_texts
from ..config import ModelConfig
from ..nn import Dropout, Embedding, LayerNorm, Linear, PositionalEncoding, TransformerEncoder, run
from ..nn.precision import DTYPES
from ..ops.masked_mean import masked_mean
from ..text.cache import ModelFingerprint, TextCache
from ..text.tokeniser import Tokeniser
from .shapes import Array, as_array, expect_shape

MOST_TOKENS = 128  # of a text, unless the caller says otherwise


class TextToCubeEncoder(nn.Module):
    """Tokens to a surface in [-1, 1].

        Embedding + positional encoding -> post-norm transformer encoder -> masked mean
        -> Linear(d, d) GELU LN Dropout(p) Linear(d, S) Tanh

    `tokeniser` is needed by `encode` alone; `EnergyFlow.from_pretrained` sets it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.text_model_dim
        self.token_embedding = Embedding(config.text_vocab_size, dim)
        self.positional_encoding = PositionalEncoding(config.text_max_positions, dim)
        self.transformer_encoder = TransformerEncoder(
            config.text_num_layers, dim, config.text_num_heads, config.text_feedforward_dim, config.dropout
        )
        self.surface_projection = [
            Linear(dim, dim), nn.GELU(), LayerNorm(dim), Dropout(config.dropout),
            Linear(dim, config.surface_dim), nn.Tanh(),
        ]  # fmt: skip
        self.tokeniser: Tokeniser | None = None
        self._heads, self._surface_dim, self._entries = config.text_num_heads, config.surface_dim, config.text_vocab_size
        self._dtype = DTYPES[config.compute_dtype]
        self._most_tokens = min(MOST_TOKENS, config.text_max_positions)
        self._weights = ModelFingerprint()

    def __call__(self, input_ids: Array, attention_mask: Array) -> mx.array:
        """input_ids [B, T] in 0..vocab-1, attention_mask [B, T] (non-zero: a token) -> surfaces [B, S], in `compute_dtype`."""
        input_ids, attention_mask = as_array("input_ids", input_ids), as_array("attention_mask", attention_mask)
        expect_shape("input_ids", input_ids, (None, None))
        expect_shape("attention_mask", attention_mask, tuple(input_ids.shape))
        x = self.transformer_encoder(self._embedded(input_ids), attention_mask.astype(mx.bool_))
        return run(self.surface_projection, masked_mean(x, attention_mask))

    def _embedded(self, input_ids: mx.array) -> mx.array:
        """Token ids [B, T] -> what the transformer reads [B, T, d]."""
        return self.positional_encoding(self.token_embedding(input_ids, self._dtype))

    def attention(self, text: str) -> tuple[list[str], np.ndarray]:
        """What the tokens of one text look at: its tokens, and weights [layers, heads, T, T], each row of which sums to 1.

        Raises:
            TypeError, ValueError: as `encode`.
        """
        tokeniser = self.fitting_tokeniser()
        ids, mask = tokeniser.encode(check_texts("text", [text]), self._most_tokens)
        tokens = tokeniser.tokens(ids[0, : mask.sum()])
        x = self._embedded(mx.array(ids[:, : len(tokens)]))
        weights = []
        for layer in self.transformer_encoder.layers:
            weights.append(layer.self_attn.weights(x)[0])
            x = layer(x)
        return tokens, np.array(mx.stack(weights).astype(mx.float32))

    def encode(self, texts: Sequence[str], max_length: int | None = None, cache: TextCache | None = None) -> mx.array:
        """Texts -> surfaces [B, S]. Longer texts are cut to max_length tokens (None: 128, or as many as there are positions for); an
        empty one is read as "empty".

        Args:
            cache: where surfaces are looked up and kept; only in evaluation mode, and without gradients.

        Raises:
            ValueError: there is no tokeniser, it has more entries than the token embedding, or a cache is given while
                dropout makes every surface another one.
        """
        tokeniser = self.fitting_tokeniser()
        checked = check_texts("texts", texts)
        max_length = self._most_tokens if max_length is None else max_length
        if not checked:
            return mx.zeros((0, self._surface_dim), self._dtype)
        if cache is None:
            return self._encode(tokeniser, checked, max_length)
        if self.training:
            raise ValueError("cache: surfaces vary in training mode, with dropout; call eval() first")

        def compute(missing: list[str]) -> np.ndarray:
            return np.array(self._encode(tokeniser, missing, max_length).astype(mx.float32))

        surfaces = cache.surfaces(f"{self.fingerprint()} {max_length}", checked, compute)
        return mx.array(surfaces).astype(self._dtype)

    def fingerprint(self) -> str:
        """A hash of everything that a surface depends on beside the text and its length: weights, heads, tokeniser.

        Raises:
            ValueError: as `encode`.
        """
        weights = self._weights.of(dict(tree_flatten(self.parameters())))
        return f"{weights} {self._heads} {self.fitting_tokeniser().fingerprint}"

    def fitting_tokeniser(self) -> Tokeniser:
        """The tokeniser. Raises ValueError if there is none, or it has more entries than the token embedding."""
        if self.tokeniser is None:
            raise ValueError(
                "tokeniser: None, but texts need one: set text_encoder.tokeniser (energy_flow_mlx.data.open_tokeniser opens one), or put its "
                "tokenizer.json into the model's folder; convert takes --tokenizer FILE"
            )
        if self.tokeniser.vocab_size > self._entries:
            raise ValueError(
                f"tokeniser: it has {self.tokeniser.vocab_size} vocabulary entries, the token embedding has {self._entries}"
            )
        return self.tokeniser

    def _encode(self, tokeniser: Tokeniser, texts: list[str], max_length: int) -> mx.array:
        tokens = tokeniser.encode(texts, max_length)
        return self(mx.array(tokens.input_ids), mx.array(tokens.attention_mask))
