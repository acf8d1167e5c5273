"""Seeded selection of pairs and splits that share no premise; the same on every platform."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.permute import seeded_order


class Parts(NamedTuple):
    """The indices of the pairs of each part, ascending; `left_out` counts the pairs in no part."""

    train: NDArray[np.int64]  # [train pairs]
    validation: NDArray[np.int64]  # [validation pairs]
    test: NDArray[np.int64]  # [test pairs]
    left_out: int


def choose(count: int, fraction: float, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Draw n = min(round(fraction * count), limit) of `count` pairs without replacement.

    For the same seed, a smaller fraction or limit gives a subset of what a larger one gives.

    Returns:
        Their indices [n], ascending.
    """
    kept = round(fraction * count)
    return np.sort(seeded_order(count, seed, 0)[: kept if limit is None else min(kept, limit)])


def split_groups(group: NDArray[np.int64], validation: int, test: int, seed: int) -> Parts:
    """Split pairs so that those of a group, which share a premise, are in the same part.

    Args:
        group: [N], the group of each pair.
        validation, test: pairs in these parts; `train` gets the rest. If the last group of a part has more pairs than
            the part needs, the surplus is left out, because no other part may hold it.
        seed: 0 or more.
    """
    _, number = np.unique(group, return_inverse=True)
    order = seeded_order(int(number.max()) + 1 if number.size else 0, seed, 1)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    by_rank = np.argsort(rank[number], kind="stable")  # pairs, sorted by the shuffled groups
    ends = np.cumsum(np.bincount(rank[number], minlength=len(order)))  # end of each group in by_rank
    parts, start, left_out = [], 0, 0
    for size in (validation, test):
        if size == 0:
            parts.append(np.zeros(0, np.int64))
            continue
        reaching = int(np.searchsorted(ends, start + size))
        end = int(ends[reaching]) if reaching < len(ends) else len(group)
        part = by_rank[start:end]
        parts.append(np.sort(part[:size]))
        left_out += len(part) - len(part[:size])
        start = end
    return Parts(np.sort(by_rank[start:]), parts[0], parts[1], left_out)
