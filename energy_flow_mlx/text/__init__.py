"""Text for models: tokenisers, and a cache of the surfaces that a text encoder computed."""

from .cache import TextCache
from .tokeniser import TokenBatch, Tokeniser, WordPieceTokeniser

__all__ = ["TextCache", "TokenBatch", "Tokeniser", "WordPieceTokeniser"]
