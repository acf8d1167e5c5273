"""Texts as rows of token ids that a decoder learns to write."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..checks import EMPTY_TEXT
from ..config import ConfigError
from .tokeniser import END, START, Tokeniser

NO_TOKEN = -1  # after the end of a text
_STARTS, _ENDS = (START, "<s>"), (END, "</s>")


def token_rows(tokeniser: Tokeniser, texts: Sequence[str], max_length: int) -> NDArray[np.int32]:
    """Texts as rows [N, max_length] of token ids, cut or filled with NO_TOKEN; an empty text, which stands for none, is a row of it."""
    ids, mask = tokeniser.encode(texts, max_length)
    there = mask.astype(bool) & np.array([bool(text) for text in texts], bool)[:, None]
    return np.where(there, ids, NO_TOKEN).astype(np.int32)


def framing(tokeniser: Tokeniser) -> tuple[int, int]:
    """The tokens with which this tokeniser begins and ends every text.

    Raises:
        ConfigError: it does not, so that a decoder could not tell where a text ends; names what it does.
    """
    ids, mask = tokeniser.encode([EMPTY_TEXT], 16)
    row = ids[0][mask[0] > 0]
    if row[0] != tokeniser.token_id(*_STARTS) or row[-1] != tokeniser.token_id(*_ENDS):
        raise ConfigError(
            f"the run's tokeniser does not fit a text decoder: it makes {' '.join(tokeniser.tokens(row))} of a text; accepted is one that "
            f"begins each text with {' or '.join(_STARTS)} and ends it with {' or '.join(_ENDS)}"
        )
    return int(row[0]), int(row[-1])
