"""Layers that the models share and that `mlx.nn` lacks or shapes otherwise."""

from .attention import MultiHeadAttention
from .bert import BertEncoder, BertSettings
from .embedding import Embedding
from .gru import GRUCell
from .linear import Linear
from .norm import LayerNorm
from .positional import PositionalEncoding
from .sequence import run
from .transformer import TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "BertEncoder",
    "BertSettings",
    "Embedding",
    "GRUCell",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "PositionalEncoding",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "run",
]
