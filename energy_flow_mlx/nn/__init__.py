"""Layers that the models share and that `mlx.nn` lacks or shapes otherwise."""

from .attention import MultiHeadAttention
from .gru import GRUCell
from .positional import PositionalEncoding
from .sequence import run
from .transformer import TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "GRUCell",
    "MultiHeadAttention",
    "PositionalEncoding",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "run",
]
