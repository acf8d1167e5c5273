"""How much of the texts that were wanted is in the texts that came: exact match, token F1, BLEU and cosine, by length.

Texts are compared by `checks.canonical`: case, width, white space and invisible characters do not count.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import canonical

# Words of the wanted text, at most -> what the table calls them.
LENGTHS: Mapping[float, str] = {5: "up to 5", 8: "6-8", 12: "9-12", 16: "13-16", math.inf: "over 16"}
TOTAL = "all"
NO_BLEU = "BLEU is left out: it takes sacrebleu, which `pip install 'energy-flow-mlx[bleu]'` brings"

_WORD = r"\w+(?:['\u2019]\w+)*"  # with its apostrophes
_TOKEN = rf"{_WORD}|[^\w\s]"  # a word, or a mark


@dataclass(frozen=True)
class TextScores:
    """Of N pairs of a wanted text and one that came: `texts`, N; `exact`, the share that are equal; `token_f1`, its mean, 0 to 1; `bleu`,
    that of the corpus, 0 to 100, None without sacrebleu; `cosine`, the mean of those given, None if none were."""

    texts: int
    exact: float
    token_f1: float
    bleu: float | None
    cosine: float | None


def scores_by_length(wanted: Sequence[str], came: Sequence[str], cosines: Sequence[float] | None = None) -> dict[str, TextScores]:
    """The scores of N texts by the length of the wanted one, in the order of `LENGTHS`, and of all, `TOTAL`. Lengths that no text has are
    left out.

    Args:
        wanted, came: N texts each, N at least 1.
        cosines: [N], between the embeddings of the two.

    Raises:
        ValueError: the numbers differ, or there is no text.
    """
    given = {"wanted": len(wanted), "came": len(came), "cosines": len(wanted if cosines is None else cosines)}
    if len(set(given.values())) > 1 or not wanted:
        raise ValueError(f"wanted, came and cosines must be as many, and one at least, got {given}")
    lengths = np.searchsorted(list(LENGTHS), [words(text) for text in wanted])
    groups = {name: np.flatnonzero(lengths == number) for number, name in enumerate(LENGTHS.values())}
    groups[TOTAL] = np.arange(len(wanted))

    def of(rows: Sequence[Any], chosen: NDArray[np.int64]) -> list[Any]:
        return [rows[at] for at in chosen]

    return {
        name: _scores(of(wanted, chosen), of(came, chosen), None if cosines is None else of(cosines, chosen))
        for name, chosen in groups.items()
        if chosen.size
    }


def words(text: str) -> int:
    """The words of a text, without its marks."""
    return len(re.findall(_WORD, text))


def token_f1(wanted: str, came: str) -> float:
    """The harmonic mean of two shares, 0 to 1: of the wanted tokens, those that came, and of the tokens that came, those wanted. Tokens
    are words and marks; one that occurs twice counts twice."""
    left, right = (Counter(re.findall(_TOKEN, canonical(text))) for text in (wanted, came))
    return 2 * (left & right).total() / max(left.total() + right.total(), 1)


def bleu(wanted: Sequence[str], came: Sequence[str]) -> float | None:
    """sacrebleu's BLEU of a corpus, 0 to 100, up to the longest n-grams that there are; None without sacrebleu."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return None
    metric = BLEU(effective_order=True, force=True)  # force: no warning of texts that end in " .", which is how some tokenisers write
    left, right = ([canonical(text) for text in texts] for texts in (wanted, came))
    return float(metric.corpus_score(right, [left]).score)


def _scores(wanted: Sequence[str], came: Sequence[str], cosines: Sequence[float] | None) -> TextScores:
    pairs = list(zip(wanted, came, strict=True))
    return TextScores(
        texts=len(pairs),
        exact=float(np.mean([canonical(one) == canonical(other) for one, other in pairs])),
        token_f1=float(np.mean([token_f1(*pair) for pair in pairs])),
        bleu=bleu(wanted, came),
        cosine=None if cosines is None else float(np.mean(cosines)),
    )
