"""Texts as models read them: tokenisers, and a cache of the surfaces that a text encoder made."""

from .cache import TextCache
from .tokeniser import TokenBatch, Tokeniser, WordPieceTokeniser

__all__ = ["TextCache", "TokenBatch", "Tokeniser", "WordPieceTokeniser"]
