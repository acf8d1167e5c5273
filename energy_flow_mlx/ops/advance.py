"""One move of every flow: displacement to position, with the lattice's bounds."""

from typing import NamedTuple

import mlx.core as mx

from ..geometry import clamp_to_lattice, reflect
from .numerics import clamp, sanitise

LARGEST_DISPLACEMENT = 0.5  # per axis and step, before exploration noise


class Move(NamedTuple):
    """raw [N,3]: position + displacement + noise, unbounded. position [N,3]: where the flow is now, in [-1, 1].
    terminated [N] bool: it stands on an output plane. length [N]: of the move as clamped, before any reflection."""

    raw: mx.array
    position: mx.array
    terminated: mx.array
    length: mx.array


def advance(
    displacement: mx.array, position: mx.array, noise: mx.array | None = None, *, reflection: bool = False
) -> Move:
    """Move flows (pytorch_energy_flow, sections 1 and 2).

        raw = position + clip(displacement, -0.5, 0.5) + noise;  next = clip(raw, -1, 1), with reflection off
        next = clip(reflect(raw), -1, 1), with reflection on;    terminated: next_z <= -1 or next_z >= 1

    Args:
        displacement: [N, 3], scaled but not yet clipped.
        position: [N, 3] in [-1, 1].
        noise: [N, 3] or None.
    """
    raw = position + clamp(displacement, -LARGEST_DISPLACEMENT, LARGEST_DISPLACEMENT)
    if noise is not None:
        raw = raw + noise
    # NaN compares false with every bound and would walk out of the lattice; clamping alone does not stop it.
    bounded = sanitise(raw, 10.0)
    clamped = clamp_to_lattice(bounded)
    moved = clamp_to_lattice(reflect(bounded)) if reflection else clamped
    z = mx.stop_gradient(clamped[:, 2])
    # The length only decides who spawns and who is dropped, which is discrete: no gradient, and no root at 0 to guard.
    step = mx.stop_gradient(clamped - position)
    return Move(raw, moved, (z <= -1.0) | (z >= 1.0), mx.sqrt(mx.sum(step * step, axis=1)))
