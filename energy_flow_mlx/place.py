"""The rows of a batch that several processes share: where those of this process stand.

What a forward pass draws at random, and what it divides among the samples of a batch, depends on the whole batch and not on how many
processes share it. Alone, a process holds all rows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx

_place: ContextVar[tuple[int, int]] = ContextVar("place", default=(0, 1))


@contextmanager
def sharing(rank: int, size: int) -> Iterator[None]:
    """Inside, a batch is the part number `rank` of `size` equal parts, in order, of a whole batch."""
    before = _place.set((rank, size))
    try:
        yield
    finally:
        _place.reset(before)


def whole(rows: int) -> int:
    """The rows of the whole batch of which this process holds `rows`."""
    return rows * _place.get()[1]


def own_rows(draw: Callable[[tuple[int, ...]], mx.array], shape: tuple[int, ...]) -> mx.array:
    """Random numbers of `shape`, whose first axis goes over rows of the batch: those that the whole batch has at these rows.

    Everything is drawn and the rest is dropped: a key for each row would change the numbers that one process draws.
    """
    rank, size = _place.get()
    if size == 1:
        return draw(shape)
    rows = shape[0]
    drawn = draw((rows * size, *shape[1:]))
    return mx.contiguous(drawn[rank * rows : (rank + 1) * rows])  # a copy, which does not keep the rest alive
