"""The WordPiece tokeniser: text <-> ids of a fixed length."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ..files import write_aside
from .checks import check_int, check_texts

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = [PAD, UNKNOWN, START, END, MASK]  # ids 0 to 4 of a trained tokeniser
_CONTINUES = "##"
# [CLS], one token, [SEP]
_SHORTEST = 3


class TokenBatch(NamedTuple):
    """N texts of T tokens."""

    input_ids: NDArray[np.int32]  # [N, T], padded at the end
    attention_mask: NDArray[np.int32]  # [N, T], 1 on tokens, 0 on padding


class WordPieceTokeniser:
    """BERT's WordPiece: lower case, split at white space and punctuation, longest known pieces, `[CLS] text [SEP]`.

    Made by `train` or `from_file`; works with every `tokenizer.json` whose vocabulary has a `[PAD]` token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pad_id = tokenizer.token_to_id(PAD)
        if pad_id is None:
            raise ValueError(f"tokenizer: its vocabulary of {tokenizer.get_vocab_size()} tokens has no {PAD}")
        self._tokenizer = tokenizer
        self._pad_id: int = pad_id

    @classmethod
    def train(cls, texts: Sequence[str], vocab_size: int) -> "WordPieceTokeniser":
        """Learn the pieces from texts. The same texts give the same vocabulary, in every process.

        Args:
            texts: the corpus, in any order.
            vocab_size: the most entries to make, special tokens included; a small corpus gives fewer.

        Raises:
            TypeError, ValueError: an argument is of the wrong kind, or `vocab_size` is too small for the letters.
        """
        vocab_size = check_int("vocab_size", vocab_size, len(SPECIAL_TOKENS) + 1)
        checked = check_texts("texts", texts)
        if not checked:
            raise ValueError("texts must hold at least one text to learn from, got none")
        tokenizer = _bert(models.WordPiece(unk_token=UNKNOWN))
        # The library numbers the letters inside words in the order of a randomly seeded hash map, and ties between
        # merges follow the numbers. Numbered up front, like special tokens, they make the training deterministic.
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
        # Built again from the vocabulary alone: the letters are to be pieces, not special tokens.
        return cls(_bert(models.WordPiece(vocabulary, unk_token=UNKNOWN)))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "WordPieceTokeniser":
        """Load a `tokenizer.json`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a tokeniser, or has no `[PAD]` token.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokeniser at {path}: expected a tokenizer.json")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for text that it cannot parse
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
        try:
            return cls(tokenizer)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `tokenizer.json` that the `tokenizers` library reads, aside first and then renamed."""
        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.no_truncation()  # lengths belong to a call, not to the file
        copy.no_padding()
        write_aside(path, lambda aside: aside.write_text(copy.to_str(pretty=True), encoding="utf-8"))

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding table needs: one more than the largest id."""
        return max(self._tokenizer.get_vocab().values()) + 1

    def encode(self, texts: Sequence[str], max_length: int) -> TokenBatch:
        """Texts -> ids, cut or padded to exactly `max_length`, so that shapes stay static.

        An empty or white-space text is encoded as "empty".

        Args:
            texts: N strings.
            max_length: T, at least 3; counts `[CLS]` and `[SEP]`.

        Raises:
            TypeError, ValueError: naming the argument, and the index of a text that is no valid string.
        """
        max_length = check_int("max_length", max_length, _SHORTEST)
        checked = check_texts("texts", texts)
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.enable_padding(length=max_length, pad_id=self._pad_id, pad_token=PAD)
        encodings = self._tokenizer.encode_batch_fast(checked)
        shape = (len(checked), max_length)
        return TokenBatch(
            np.array([encoding.ids for encoding in encodings], dtype=np.int32).reshape(shape),
            np.array([encoding.attention_mask for encoding in encodings], dtype=np.int32).reshape(shape),
        )

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of one row of ids, without special tokens.

        Raises:
            TypeError, ValueError: an id is no integer or not in the vocabulary.
        """
        size = self.vocab_size
        checked = [check_int(f"ids[{index}]", id, 0, size - 1) for index, id in enumerate(ids)]
        text: str = self._tokenizer.decode(checked, skip_special_tokens=True)
        return text


def open_tokeniser(spec: str | os.PathLike[str]) -> WordPieceTokeniser:
    """The tokeniser in a `tokenizer.json` or in a folder that holds one. Raises as `WordPieceTokeniser.from_file`."""
    path = Path(spec)
    return WordPieceTokeniser.from_file(path / "tokenizer.json" if path.is_dir() else path)


def _bert(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_CONTINUES)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    start, end = SPECIAL_TOKENS.index(START), SPECIAL_TOKENS.index(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B:1 {END}:1",
        special_tokens=[(START, start), (END, end)],
    )
    return tokenizer


def _letters_inside_words(tokenizer: Tokenizer, texts: list[str]) -> set[str]:
    """Every letter that stands after another one in a word, as the tokeniser sees words."""
    letters: set[str] = set()
    for chunk in {chunk for text in texts for chunk in text.split()}:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(chunk)):
            letters.update(word[1:])
    return letters
