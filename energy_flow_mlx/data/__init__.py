"""Training data: the built-in corpus, teachers that embed texts, and the `PairDataset` interface of training."""

from ..config import check_fit
from ..text.cache import TextCache
from ..text.tokeniser import TokenBatch, Tokeniser, WordPieceTokeniser
from .corpus import Splits, TextPair, corpus_size, generate_pairs, split_pairs
from .source import ArrayPairs, EpochOrder, PairBatch, PairData, PairDataset, built_in_data
from .teacher import EncoderTeacher, HashedNgramTeacher, Teacher, open_teacher
from .tokenisers import open_tokeniser

__all__ = [
    "ArrayPairs",
    "EncoderTeacher",
    "EpochOrder",
    "HashedNgramTeacher",
    "PairBatch",
    "PairData",
    "PairDataset",
    "Splits",
    "Teacher",
    "TextCache",
    "TextPair",
    "TokenBatch",
    "Tokeniser",
    "WordPieceTokeniser",
    "built_in_data",
    "check_fit",
    "corpus_size",
    "generate_pairs",
    "open_teacher",
    "open_tokeniser",
    "split_pairs",
]
