"""The built-in teacher: a projection of hashed words, word bigrams and letter trigrams."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..checks import EMPTY_TEXT, check_int, check_texts

_BUCKETS = 8192
_WORD = re.compile(r"\w+")
# The most rows that one gather copies; bounds the memory for a very long text.
_BLOCK = 4096


class HashedNgramTeacher:
    """A fixed random projection of hashed n-grams. It is not a language model.

    It needs no download and captures no meaning: texts are close when they share words, word bigrams or letter
    trigrams. Every n-gram is hashed to one of 8192 rows r of fixed Gaussian numbers. With n distinct words and m
    distinct bigrams,

        v = 1/sqrt(n) Σ_words (r(word) + l(word)) + 1/(2 sqrt(m)) Σ_bigrams r(bigram)
        l(word) = 1/sqrt(t) Σ_trigrams r(trigram)

    over the t trigrams of "<word>"; the embedding is v / |v|. A repeated word or bigram counts once, so that frequent
    words such as articles do not dominate. Words are runs of letters and digits in the case-folded NFKC form of the
    text; if there are none, the text is split at white space. An empty text is embedded as the text "empty".

    Args:
        dim: size of an embedding, E, at least 1.
        seed: of the Gaussian rows, from 0 to 2**32 - 1.

    Raises:
        TypeError, ValueError: an argument is not an integer or is out of range.
    """

    def __init__(self, dim: int = 768, seed: int = 0) -> None:
        self._dim = check_int("dim", dim, 1)
        self._seed = check_int("seed", seed, 0, 2**32 - 1)
        # RandomState: NumPy has frozen its random streams, while those of Generator may change between versions.
        rows = np.random.RandomState(self._seed).standard_normal((_BUCKETS, self._dim))
        self._rows: NDArray[np.float32] = rows.astype(np.float32)  # [buckets, E]
        self._word = lru_cache(maxsize=8192)(self._embed_word)
        self._bigram = lru_cache(maxsize=65536)(_bigram_bucket)

    def __repr__(self) -> str:
        return f"<HashedNgramTeacher {self.name}: texts -> [N, {self._dim}]>"

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def name(self) -> str:
        return f"hashed-ngram-{self._dim}-seed{self._seed}"

    @property
    def fingerprint(self) -> str:
        # `1` is the version of the formula. The rows depend on the seed and the dimension alone.
        return hashlib.blake2b(f"hashed-ngram 1 {self._dim} {self._seed}".encode(), digest_size=16).hexdigest()

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: N strings.

        Returns:
            [N, E], each row of length 1.

        Raises:
            TypeError, ValueError: `texts` is not a list of valid strings; the message names the index.
        """
        checked = check_texts("texts", texts)
        embeddings = np.empty((len(checked), self._dim), dtype=np.float32)
        for index, text in enumerate(checked):
            embeddings[index] = self._embed_text(text)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        return embeddings

    def _embed_text(self, text: str) -> NDArray[np.float32]:
        folded = unicodedata.normalize("NFKC", text).casefold()
        words = _WORD.findall(folded) or folded.split() or [EMPTY_TEXT]
        # Dictionaries, not sets: the order of summation affects rounding, and a set's order differs between processes.
        distinct = list(dict.fromkeys(words))
        bigrams = list(dict.fromkeys(pairwise(words)))
        vector = np.zeros(self._dim, dtype=np.float32)
        for start in range(0, len(distinct), _BLOCK):
            vector += np.add.reduce([self._word(word) for word in distinct[start : start + _BLOCK]])
        vector /= np.sqrt(len(distinct), dtype=np.float32)
        if bigrams:
            buckets = [self._bigram(first, second) for first, second in bigrams]
            vector += self._sum_rows(buckets) * np.float32(0.5 / np.sqrt(len(bigrams)))
        return vector

    def _embed_word(self, word: str) -> NDArray[np.float32]:
        framed = f"<{word}>"
        trigrams = [_bucket("c", framed[start : start + 3]) for start in range(len(framed) - 2)]
        letters = self._sum_rows(trigrams) / np.sqrt(len(trigrams), dtype=np.float32)
        vector: NDArray[np.float32] = self._rows[_bucket("w", word)] + letters
        return vector

    def _sum_rows(self, buckets: list[int]) -> NDArray[np.float32]:
        total = np.zeros(self._dim, dtype=np.float32)
        for start in range(0, len(buckets), _BLOCK):
            total += np.add.reduce(self._rows[buckets[start : start + _BLOCK]])
        return total


def _bucket(kind: str, ngram: str) -> int:
    """The row of an n-gram. BLAKE2, because Python's `hash` of a string differs between processes."""
    digest = hashlib.blake2b(f"{kind} {ngram}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _BUCKETS


def _bigram_bucket(first: str, second: str) -> int:
    return _bucket("b", f"{first} {second}")
