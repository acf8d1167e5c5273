"""TextToCubeEncoder: a text becomes a surface."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..config import EnergyConfig
from ..data.tokeniser import WordPieceTokeniser
from ..nn import PositionalEncoding, TransformerEncoder, masked_mean, run
from .shapes import expect_shape


class TextToCubeEncoder(nn.Module):
    """Tokens to a surface in [-1, 1] (pytorch_energy_flow, section 2).

        Embedding + positional encoding -> post-norm transformer encoder -> masked mean
        -> Linear(d, d) GELU LN Dropout(.1) Linear(d, S) Tanh

    `tokeniser` is needed by `encode` alone; `EnergyFlow.from_pretrained` sets it.
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        dim = config.text_model_dim
        self.token_embedding = nn.Embedding(config.text_vocab_size, dim)
        self.positional_encoding = PositionalEncoding(config.text_max_positions, dim)
        self.transformer_encoder = TransformerEncoder(
            config.text_num_layers, dim, config.text_num_heads, config.text_feedforward_dim
        )
        self.surface_projection = [
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim), nn.Dropout(0.1),
            nn.Linear(dim, config.surface_dim), nn.Tanh(),
        ]  # fmt: skip
        self.tokeniser: WordPieceTokeniser | None = None

    def __call__(self, input_ids: mx.array, attention_mask: mx.array) -> mx.array:
        """input_ids [B, T] in 0..vocab-1, attention_mask [B, T] (non-zero: a token) -> surfaces [B, S]."""
        expect_shape("input_ids", input_ids, (None, None))
        expect_shape("attention_mask", attention_mask, tuple(input_ids.shape))
        x = self.positional_encoding(self.token_embedding(input_ids))
        x = self.transformer_encoder(x, attention_mask.astype(mx.bool_))
        return run(self.surface_projection, masked_mean(x, attention_mask))

    def encode(self, texts: Sequence[str], max_length: int = 128) -> mx.array:
        """Texts -> surfaces [B, S]. Longer texts are cut to max_length tokens; an empty one is read as "empty".

        Raises:
            ValueError: there is no tokeniser.
        """
        if self.tokeniser is None:
            raise ValueError("tokeniser: None; set text_encoder.tokeniser, or load a folder that holds tokenizer.json")
        tokens = self.tokeniser.encode(texts, max_length)
        return self(mx.array(tokens.input_ids), mx.array(tokens.attention_mask))
