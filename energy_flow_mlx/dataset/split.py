"""Seeded choices among pairs: a share of them, and parts that share no premise. The same on every platform."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.permute import seeded_order


class Parts(NamedTuple):
    """Indices of pairs, each part in rising order; `left_out` pairs belong to no part."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    left_out: int


def choose(count: int, fraction: float, limit: int | None, seed: int) -> NDArray[np.int64]:
    """Which of `count` pairs are taken, in rising order: round(fraction * count) of them, drawn once; then `limit` of these.

    For one seed a smaller limit or fraction takes a part of what a larger one takes.
    """
    kept = round(fraction * count)
    return np.sort(seeded_order(count, seed, 0)[: kept if limit is None else min(kept, limit)])


def split_groups(group: NDArray[np.int64], validation: int, test: int, seed: int) -> Parts:
    """Split pairs so that those of one group, which share a premise, land in one part.

    Args:
        group: [N], the group of each pair.
        validation, test: how many pairs these parts get; when the last group of a part has more pairs than are still
            wanted, the surplus is left out, since no other part may hold it. `train` gets the rest.
        seed: from 0.
    """
    _, number = np.unique(group, return_inverse=True)
    order = seeded_order(int(number.max()) + 1 if number.size else 0, seed, 1)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    by_rank = np.argsort(rank[number], kind="stable")  # pairs, group behind group
    ends = np.cumsum(np.bincount(rank[number], minlength=len(order)))  # pairs up to the end of each group
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
