"""Slots for children: prefix sum and compaction, per sample, in a deterministic order."""

from typing import NamedTuple

import mlx.core as mx


class Births(NamedTuple):
    """parent [B, K] int32: slot of the parent of the child that is born into each of the K child slots, -1 where none is.
    born [B] int32: children that got a slot. overflowed [B] int32: children for which there was none."""

    parent: mx.array
    born: mx.array
    overflowed: mx.array


def spawn(
    length: mx.array, spawning: mx.array, taken: mx.array, room: mx.array, *, slots: int, threshold: float, most: int
) -> Births:
    """Give each child of a step the next free child slot of its sample.

    A flow whose move has length m leaves k = min(floor(m / threshold) - 1, most) children (pytorch_energy_flow, section 3).
    Children are ordered by their parent's slot, then by their number.

    Args:
        length: [B, C] of each flow's move.
        spawning: [B, C] bool, flows that may leave children: active and not terminated.
        taken: [B] int32, child slots in use; they are taken from the front.
        room: [B] int32, how many more flows of the sample may be active at once.
        slots: K, child slots of a sample.
    """
    count = mx.minimum(mx.floor(length / threshold) - 1.0, float(most))
    count = mx.where(spawning & (length > threshold), mx.maximum(count, 0.0), 0.0).astype(mx.int32)
    first = taken[:, None] + mx.cumsum(count, axis=1) - count  # slot of each flow's first child
    limit = mx.minimum(taken + mx.maximum(room, 0), slots)[:, None]

    batch, flows = length.shape
    rows = mx.arange(batch)[:, None]
    own_slot = mx.broadcast_to(mx.arange(flows, dtype=mx.int32)[None], (batch, flows))
    # Slot K is a bin for children without a place. The largest wins where several meet, so the order never matters.
    parent = mx.full((batch, slots + 1), -1, dtype=mx.int32)
    for child in range(most):
        slot = first + child
        placed = (child < count) & (slot < limit)
        # Inside mx.checkpoint `taken` is an input of the backward pass, integer or not.
        place = mx.stop_gradient(mx.where(placed, slot, slots))
        parent = parent.at[rows, place].maximum(mx.where(placed, own_slot, -1))
    asked = mx.sum(count, axis=1)
    born = mx.minimum(asked, limit[:, 0] - taken)
    return Births(parent[:, :slots], born, asked - born)
