"""Slots for children against a plain loop over parents."""

import mlx.core as mx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_flow_mlx.ops.spawn import spawn


def by_loop(length, spawning, taken, room, slots, threshold, most):
    """Children in the order of their parents, each into the next free slot."""
    parents, born, lost = [], [], []
    for sample in range(len(length)):
        row, used, free, missing = [-1] * slots, int(taken[sample]), int(room[sample]), 0
        for flow, (move, may) in enumerate(zip(length[sample], spawning[sample], strict=True)):
            for _ in range(min(int(move // threshold) - 1, most) if may else 0):
                if used < slots and free > 0:
                    row[used], used, free = flow, used + 1, free - 1
                else:
                    missing += 1
        parents.append(row)
        born.append(used - int(taken[sample]))
        lost.append(missing)
    return parents, born, lost


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(0, 4),
    st.integers(-1, 12),
)
def test_spawn_is_the_loop(seed: int, batch: int, flows: int, slots: int, most: int, most_room: int) -> None:
    rng = np.random.default_rng(seed)
    length = rng.uniform(0, 1.2, (batch, flows)).astype(np.float32)
    spawning = rng.random((batch, flows)) < 0.7
    taken = rng.integers(0, slots + 1, batch).astype(np.int32)
    room = rng.integers(-1, most_room + 1, batch).astype(np.int32)
    arguments = {"slots": slots, "threshold": 0.25, "most": most}  # 0.25 divides exactly
    births = spawn(*map(mx.array, (length, spawning, taken, room)), **arguments)
    parents, born, lost = by_loop(length, spawning, taken, room, **arguments)
    assert births.parent.tolist() == parents
    assert births.born.tolist() == born
    assert births.overflowed.tolist() == lost


def test_children_per_length_of_a_move() -> None:
    lengths = [0.0, 0.3, 0.5, 0.74, 0.75, 1.0, 5.0, float("inf")]
    one = mx.ones((len(lengths), 1), dtype=mx.bool_)
    zero = mx.zeros((len(lengths),), dtype=mx.int32)
    births = spawn(mx.array(lengths)[:, None], one, zero, zero + 99, slots=9, threshold=0.25, most=3)
    assert births.born.tolist() == [0, 0, 1, 1, 2, 3, 3, 3]
