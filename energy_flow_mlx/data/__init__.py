"""Data: the built-in corpus, teachers, the tokeniser, and the interface through which pairs reach training."""

from .corpus import Splits, TextPair, corpus_size, generate_pairs, split_pairs
from .source import ArrayPairs, EpochOrder, PairBatch, PairData, PairDataset, built_in_data, open_data
from .teacher import HashedNgramTeacher, Teacher
from .tokeniser import TokenBatch, WordPieceTokeniser

__all__ = [
    "ArrayPairs",
    "EpochOrder",
    "HashedNgramTeacher",
    "PairBatch",
    "PairData",
    "PairDataset",
    "Splits",
    "Teacher",
    "TextPair",
    "TokenBatch",
    "WordPieceTokeniser",
    "built_in_data",
    "corpus_size",
    "generate_pairs",
    "open_data",
    "split_pairs",
]
