"""Tokenisers: texts to token ids of a fixed length, and back."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ..checks import EMPTY_TEXT, check_int, check_texts
from ..files import write_aside

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = [PAD, UNKNOWN, START, END, MASK]  # ids 0 to 4 of a trained tokeniser
# Padding tokens of common tokenisers, then their end-of-text tokens for those without padding. Padding is masked, so
# any token will do: a tokeniser with none of these pads with its first special token, or its first token.
_PADDINGS = (PAD, "<pad>", "<|pad|>", "<|padding|>", "<PAD>", "</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
_CONTINUES = "##"
MOST_ENTRIES = 2**31 - 1  # ids are int32
# [CLS], one token, [SEP]
_SHORTEST = 3


class TokenBatch(NamedTuple):
    """N texts of T tokens."""

    input_ids: NDArray[np.int32]  # [N, T], padded at the end
    attention_mask: NDArray[np.int32]  # [N, T], 1 on tokens, 0 on padding


class Tokeniser:
    """Wraps a tokeniser of the `tokenizers` library.

    `train` and `whitespace` learn a vocabulary, `from_file` reads a `tokenizer.json`, `data.open_tokeniser` opens one
    by name.

    Raises:
        ValueError: the vocabulary is empty, or an id does not fit int32.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        vocabulary = tokenizer.get_vocab()
        if not vocabulary:
            raise ValueError("tokenizer: its vocabulary is empty; accepted is one of at least one token")
        names = [tokenizer.padding["pad_token"]] if tokenizer.padding else []
        by_id = sorted(vocabulary, key=vocabulary.__getitem__)
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        pads = (*names, *_PADDINGS, *(name for name in by_id if name in special), *by_id)
        largest = max(vocabulary.values())
        if largest >= MOST_ENTRIES:
            raise ValueError(f"tokenizer: its largest id is {largest}; accepted are ids under {MOST_ENTRIES}")
        self._pad = next(name for name in pads if name in vocabulary)
        # The length is set in each call of `encode`. The padding token's name is saved: it may not be in `_PADDINGS`.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if names:
            tokenizer.enable_padding(pad_id=tokenizer.token_to_id(self._pad), pad_token=self._pad)
        self._json: str = tokenizer.to_str(pretty=True)
        self._tokenizer = tokenizer
        self.encode([EMPTY_TEXT], 128)  # fails now if the post-processor adds tokens that the vocabulary lacks

    def __repr__(self) -> str:
        return f"<Tokeniser {type(self._tokenizer.model).__name__}: {self.vocab_size:,} entries, padding {self._pad}>"

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int) -> "Tokeniser":
        """Train a BERT-style WordPiece tokeniser.

        Text is lower-cased, split at white space and punctuation, matched longest-first, and framed as [CLS] text
        [SEP].
        Training is deterministic: the same texts give the same vocabulary in every process.

        Args:
            texts: the corpus, in any order.
            vocab_size: the most entries, special tokens included; a small corpus gives fewer.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, or `vocab_size` is too small for the letters.
        """
        vocab_size = check_int("vocab_size", vocab_size, len(SPECIAL_TOKENS) + 1)
        checked = check_texts("texts", texts)
        if not checked:
            raise ValueError("texts must hold at least one text to learn from, got none")
        # The library allocates what it is asked for; a letter gives at most two entries, and each merge takes one away.
        vocab_size = min(vocab_size, len(SPECIAL_TOKENS) + 4 * sum(map(len, checked)))
        tokenizer = _bert(models.WordPiece(unk_token=UNKNOWN))
        # The library numbers continuation letters (##a) in the order of a randomly seeded hash map, and breaks ties
        # between merges by number. Passing them as special tokens fixes their numbers and makes training deterministic.
        letters = [f"{_CONTINUES}{letter}" for letter in sorted(_letters_inside_words(tokenizer, checked))]
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS + letters, show_progress=False
        )
        tokenizer.train_from_iterator(checked, trainer)
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        if len(vocabulary) > vocab_size:
            raise ValueError(
                f"vocab_size must be at least {len(vocabulary)}, the special tokens and letters of texts, "
                f"got {vocab_size}"
            )
        # Rebuilt from the vocabulary, so that the letters are ordinary pieces rather than special tokens.
        return cls(_bert(models.WordPiece(vocabulary, unk_token=UNKNOWN)))

    @classmethod
    def whitespace(cls, texts: Sequence[str], vocab_size: int) -> "Tokeniser":
        """A vocabulary of the most frequent words as split at white space, with case and punctuation; for smoke tests.

        Args:
            texts: the corpus, in any order.
            vocab_size: the most entries, special tokens included.

        Raises:
            TypeError, ValueError: an argument is of the wrong type.
        """
        vocab_size = check_int("vocab_size", vocab_size, len(SPECIAL_TOKENS) + 1)
        counts = Counter(word for text in check_texts("texts", texts) for word in text.split())
        for special in SPECIAL_TOKENS:
            del counts[special]
        words = sorted(counts, key=lambda word: (-counts[word], word))[: vocab_size - len(SPECIAL_TOKENS)]
        vocabulary = {word: id for id, word in enumerate(SPECIAL_TOKENS + words)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return cls(_framed(tokenizer))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Tokeniser":
        """Load a `tokenizer.json`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a tokeniser, or its vocabulary is empty.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokeniser at {path}: expected a tokenizer.json")
        with _library_errors(f"{path} is not a tokenizer.json"):
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
        try:
            return cls(tokenizer)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `tokenizer.json` for the `tokenizers` library atomically: to a temporary file, then renamed."""
        write_aside(path, lambda aside: aside.write_text(self._json, encoding="utf-8"))

    @cached_property
    def vocab_size(self) -> int:
        """The number of rows that an embedding table needs: the largest id plus one."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def token_id(self, *names: str) -> int | None:
        """The id of the first of these tokens that the vocabulary has; None if it has none of them."""
        ids = (self._tokenizer.token_to_id(name) for name in names)
        return next((id for id in ids if id is not None), None)

    @property
    def fingerprint(self) -> str:
        """A hash of the `tokenizer.json`."""
        return hashlib.blake2b(self._json.encode(), digest_size=16).hexdigest()

    def encode(self, texts: Sequence[str], max_length: int) -> TokenBatch:
        """Encode texts, truncated or padded to exactly `max_length` tokens, so that shapes are static.

        A blank text (`checks.is_blank`), or one in which the tokeniser finds no token, is encoded as "empty".

        Args:
            texts: N strings.
            max_length: T, at least 3, including `[CLS]` and `[SEP]`.

        Returns:
            Ids and mask [N, T].

        Raises:
            TypeError, ValueError: names the argument, and the index of a text that is not a valid string.
        """
        max_length = check_int("max_length", max_length, _SHORTEST)
        checked = check_texts("texts", texts)
        batch, found = self._encode(checked, max_length)
        blank = np.flatnonzero(found == 0)
        if blank.size:
            empty, _ = self._encode([EMPTY_TEXT], max_length)
            batch.input_ids[blank], batch.attention_mask[blank] = empty.input_ids, empty.attention_mask
        return batch

    def _encode(self, texts: list[str], max_length: int) -> tuple[TokenBatch, NDArray[np.int64]]:
        """The batch, and the number [N] of tokens that each text itself gave: not those that frame or pad it."""
        pad_id = self._tokenizer.token_to_id(self._pad)
        with _library_errors("texts: this tokeniser cannot encode them"):
            self._tokenizer.enable_truncation(max_length)
            self._tokenizer.enable_padding(length=max_length, pad_id=pad_id, pad_token=self._pad)
            encodings = self._tokenizer.encode_batch_fast(texts)
        shape = (len(texts), max_length)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64).reshape(shape)
        if ids.size and ids.max() >= self.vocab_size:
            raise ValueError(f"tokenizer: it gives the id {ids.max()}, its vocabulary has {self.vocab_size} entries")
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int32).reshape(shape)
        framing = np.array([encoding.special_tokens_mask for encoding in encodings], dtype=np.int32).reshape(shape)
        return TokenBatch(ids.astype(np.int32), mask), (mask * (1 - framing)).sum(axis=1)

    def tokens(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """The tokens of one row of ids [T], as the vocabulary writes them."""
        return [str(self._tokenizer.id_to_token(int(id))) for id in ids]

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of one row of ids [T], without special tokens.

        Raises:
            TypeError, ValueError: an id is not an integer or not in the vocabulary.
        """
        size = self.vocab_size
        checked = [check_int(f"ids[{index}]", id, 0, size - 1) for index, id in enumerate(ids)]
        text: str = self._tokenizer.decode(checked, skip_special_tokens=True)
        return text


# The plan's public name; the class serves every kind of tokeniser.
WordPieceTokeniser = Tokeniser


@contextmanager
def _library_errors(words: str) -> Iterator[None]:
    """Turn the library's errors into ValueError. It raises bare Exception and, for inconsistent files, PanicException
    from its Rust code, which derives from BaseException."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{words}: {error}") from error
        raise


def _bert(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUES)
    return _framed(tokenizer)


def _framed(tokenizer: Tokenizer) -> Tokenizer:
    """Add the special tokens, with ids 0 to 4, and the template `[CLS] text [SEP]`."""
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    start, end = SPECIAL_TOKENS.index(START), SPECIAL_TOKENS.index(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B:1 {END}:1",
        special_tokens=[(START, start), (END, end)],
    )
    return tokenizer


def _letters_inside_words(tokenizer: Tokenizer, texts: list[str]) -> set[str]:
    """Every letter that occurs in a word after its first letter, with words as the tokeniser splits them."""
    letters: set[str] = set()
    for chunk in {chunk for text in texts for chunk in text.split()}:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(chunk)):
            letters.update(word[1:])
    return letters
