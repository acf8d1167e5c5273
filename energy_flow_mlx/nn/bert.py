"""The encoder of BERT and DistilBERT (Devlin et al. 2018, Sanh et al. 2019)."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from .positional import PositionalEncoding
from .transformer import Activation, TransformerEncoder


@dataclass(frozen=True, kw_only=True)
class BertSettings:
    """Sizes of an encoder. `types` is 0 for DistilBERT, which has no token types."""

    vocab_size: int
    positions: int
    types: int
    layers: int
    dim: int
    heads: int
    feedforward_dim: int
    eps: float = 1e-12
    activation: str = "gelu"


# Hugging Face's names. gelu is the exact form, the other two are one tanh formula.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
}


class BertEncoder(nn.Module):
    """Token ids to hidden states: the sum of token, position and type embeddings, LayerNorm, and TransformerEncoder.

    Made to be loaded and used as it is: it has no dropout.
    """

    def __init__(self, settings: BertSettings) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(settings.vocab_size, settings.dim)
        self.positional_encoding = PositionalEncoding(settings.positions, settings.dim)
        if settings.types:
            self.type_embedding = nn.Embedding(settings.types, settings.dim)
        self.norm = nn.LayerNorm(settings.dim, eps=settings.eps)
        self.transformer_encoder = TransformerEncoder(
            settings.layers,
            settings.dim,
            settings.heads,
            settings.feedforward_dim,
            dropout=0.0,
            eps=settings.eps,
            activation=ACTIVATIONS[settings.activation],
        )

    def __call__(
        self, input_ids: mx.array, attention_mask: mx.array, token_type_ids: mx.array | None = None
    ) -> mx.array:
        """input_ids [B, T], attention_mask [B, T] (non-zero: a token) -> hidden states [B, T, d].

        Args:
            token_type_ids: [B, T]; None: type 0 everywhere.

        Raises:
            ValueError: more tokens than positions, or token types for an encoder without them.
        """
        x = self.positional_encoding(self.token_embedding(input_ids))
        if "type_embedding" in self:
            types = mx.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            x = x + self.type_embedding(types)
        elif token_type_ids is not None:
            raise ValueError("token_type_ids: this encoder has no token types")
        return self.transformer_encoder(self.norm(x), attention_mask.astype(mx.bool_))
