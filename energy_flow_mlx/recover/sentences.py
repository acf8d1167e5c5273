"""The sentences that a run is asked for, none of which it has learned from, and the learned ones that are nearest to what it predicts."""

from collections.abc import Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import canonical
from ..data.corpus import TextPair
from ..data.source import PairData, PairDataset
from ..dataset.split import choose
from ..models.shapes import unit_rows
from ..train.evaluation import ROWS, Floats, batches

_COSINES = 1 << 22  # held at a time while the nearest are looked for


class HeldOut(NamedTuple):
    """numbers: [N], of pairs of the test split, ascending. left_out: how many other pairs were not taken, by reason."""

    numbers: NDArray[np.int64]
    left_out: dict[str, int]


def held_out(data: PairData, most: int, seed: int) -> HeldOut:
    """The pairs of the test split whose target occurs in no training text, be it an input or a target; of two that are equal the first.
    Texts are compared by `checks.canonical`.

    Args:
        most: the most pairs; of more, so many are drawn.
        seed: of the draw.
    """
    pairs: dict[TextPair, int] = {}
    left_out = dict.fromkeys(("without a text", "repeated", "in training texts", "beyond the number asked for"), 0)
    for number in range(len(data.test)):
        pair = TextPair(*map(canonical, data.test.texts(number)))
        if pair.target and pair not in pairs:
            pairs[pair] = number
        else:
            left_out["repeated" if pair.target else "without a text"] += 1
    known = learned({pair.target for pair in pairs}, data.train)
    new = [number for pair, number in pairs.items() if pair.target not in known]
    chosen = choose(len(new), 1.0, most, seed)
    left_out["in training texts"] = len(pairs) - len(new)
    left_out["beyond the number asked for"] = len(new) - len(chosen)
    return HeldOut(np.array(new, np.int64)[chosen], left_out)


def learned(texts: Set[str], train: PairDataset) -> set[str]:
    """Those of `texts`, each as `checks.canonical` gives it, that are an input or a target of a training pair."""
    known: set[str] = set()
    for number in range(len(train)):
        known |= texts & set(map(canonical, train.texts(number)))
    return known


def nearest_targets(predicted: Floats, train: PairDataset) -> list[str]:
    """Of each prediction [N, E] the training target whose embedding has the highest cosine with it. Targets without a text are passed by.

    The split is read once, in blocks, so that no more than some millions of cosines are in memory.
    """
    predicted = unit_rows(predicted)
    rows, best, texts = np.arange(len(predicted)), np.full(len(predicted), -np.inf), [""] * len(predicted)
    for batch in batches(train, min(ROWS, max(1, _COSINES // len(predicted)))):
        targets = [train.texts(int(index)).target for index in batch.indices]
        cosines = predicted @ unit_rows(batch.target_embedding).T  # [N, B]
        cosines[:, [not canonical(target) for target in targets]] = -np.inf
        nearest = np.argmax(cosines, axis=1)
        for row in np.flatnonzero(cosines[rows, nearest] > best):
            best[row], texts[row] = cosines[row, nearest[row]], targets[nearest[row]]
    return texts
