"""Opening tokenisers by name: a file, a folder, a hub id, or a whitespace tokeniser."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..model_files import locate
from ..text.tokeniser import MOST_ENTRIES, Tokeniser
from .corpus import generate_pairs

WHITESPACE = "whitespace"
_FILE = "tokenizer.json"


def open_tokeniser(
    spec: str | os.PathLike[str], *, texts: Sequence[str] | None = None, vocab_size: int | None = None
) -> Tokeniser:
    """Open the tokeniser that `spec` names.

    Args:
        spec: a `tokenizer.json`, a folder that holds one, a hub id, or "whitespace".
        texts: the corpus that "whitespace" takes its words from; None: the built-in corpus, so that most words of other
            texts are unknown.
        vocab_size: the most entries of "whitespace", special tokens included; None: every word.

    Raises:
        FileNotFoundError: no such file, and the download failed; says what to download and where to put it.
        TypeError, ValueError: the file is not a tokeniser, or an argument is not accepted.
    """
    spec = os.fspath(spec)
    if spec == WHITESPACE:
        words = [text for pair in generate_pairs(20_000, 0) for text in pair] if texts is None else texts
        return Tokeniser.whitespace(words, MOST_ENTRIES if vocab_size is None else vocab_size)
    if texts is not None or vocab_size is not None:
        raise ValueError(f"texts and vocab_size are accepted only with the tokeniser {WHITESPACE}, got {spec!r}")
    if spec.endswith(".json") or Path(spec).is_file():
        return Tokeniser.from_file(spec)
    return Tokeniser.from_file(locate("tokeniser", spec, [_FILE]) / _FILE)
