"""Layers that the models share and that `mlx.nn` lacks or shapes otherwise."""

from . import copying  # noqa: F401  lets models be copied
from .attention import MultiHeadAttention
from .bert import BertEncoder, BertSettings
from .dropout import Dropout
from .embedding import Embedding
from .gru import GRUCell, blank_weights
from .linear import Linear
from .norm import LayerNorm, RMSNorm
from .positional import PositionalEncoding
from .sequence import run
from .t5 import T5Decoder, T5Settings
from .transformer import TransformerEncoder, TransformerEncoderLayer

__all__ = [
    "BertEncoder",
    "BertSettings",
    "Dropout",
    "Embedding",
    "GRUCell",
    "LayerNorm",
    "Linear",
    "MultiHeadAttention",
    "PositionalEncoding",
    "RMSNorm",
    "T5Decoder",
    "T5Settings",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "blank_weights",
    "run",
]
