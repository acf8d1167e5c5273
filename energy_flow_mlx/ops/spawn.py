"""Slots for children: prefix sum and compaction, per sample, in a deterministic order."""

from typing import NamedTuple

import mlx.core as mx

from .kernel import call, setting, use_kernel

LARGEST_GROUP = 512  # threads of a threadgroup
# Neighbouring flows that a thread of the kernel counts: many where a sample has more than a group of few counts.
FEW, MANY = 4, 8


class Births(NamedTuple):
    """parent [B, K] int32: slot of the parent of the child that is born into each of the K child slots, -1 where none is.
    born [B] int32: children that got a slot. overflowed [B] int32: children for which there was none. before [B] int32: child slots
    that were in use before; the children have the next ones, in the order of their parents' slots."""

    parent: mx.array
    born: mx.array
    overflowed: mx.array
    before: mx.array


def spawn(
    length: mx.array,
    spawning: mx.array,
    taken: mx.array,
    room: mx.array,
    *,
    slots: int,
    threshold: float,
    most: int,
    kernels: bool | None = None,
) -> Births:
    """Give each child of a step the next free child slot of its sample. Has no gradient.

    A flow whose move has length m leaves k = min(floor(m / threshold) - 1, most) children.
    Children are ordered by their parent's slot, then by their number.

    Args:
        length: [B, C] of each flow's move.
        spawning: [B, C] bool, flows that may leave children: active and not terminated.
        taken: [B] int32, child slots in use; they are taken from the front.
        room: [B] int32, how many more flows of the sample may be active at once.
        slots: K, child slots of a sample.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.
    """
    if use_kernel("spawn", kernels):
        return forward(length, spawning, taken, room, slots=slots, threshold=threshold, most=most)
    return spawn_reference(length, spawning, taken, room, slots=slots, threshold=threshold, most=most)


def spawn_reference(
    length: mx.array, spawning: mx.array, taken: mx.array, room: mx.array, *, slots: int, threshold: float, most: int
) -> Births:
    """`spawn` in plain MLX: the specification."""
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
    return Births(parent[:, :slots], born, asked - born, taken)


def forward(
    length: mx.array, spawning: mx.array, taken: mx.array, room: mx.array, *, slots: int, threshold: float, most: int
) -> Births:
    """The kernel."""
    batch, flows = length.shape
    # Inside mx.checkpoint all of these are inputs of the backward pass, and a kernel has no gradient of its own.
    inputs = {
        "length": mx.stop_gradient(length).astype(mx.float32),
        "spawning": mx.stop_gradient(spawning),
        "taken": mx.stop_gradient(taken).astype(mx.int32),
        "room": mx.stop_gradient(room).astype(mx.int32),
        "settings": setting(threshold, float(most)),
    }
    outputs = {"parent": ((batch, slots), mx.int32), "born": ((batch,), mx.int32), "overflowed": ((batch,), mx.int32)}
    per = FEW if flows <= FEW * LARGEST_GROUP else MANY
    group = min(LARGEST_GROUP, -(-flows // (32 * per)) * 32)
    template = {"SLOTS": slots, "PER": per}
    parent, born, overflowed = call(
        "spawn", "forward", inputs, outputs, threads=batch * group, group=group, template=template
    )
    return Births(parent, born, overflowed, inputs["taken"])
