"""One move of every flow: displacement to position, with the lattice's bounds."""

import functools
from typing import Any, NamedTuple

import mlx.core as mx

from .differentiable import Differentiable
from .geometry import clamp_to_lattice, reflect
from .kernel import as_type, call, use_kernel
from .numerics import clamp, sanitise

LARGEST_DISPLACEMENT = 0.5  # per axis and step, before exploration noise
LARGEST_COORDINATE = 10.0  # what infinity becomes before the clamp


class Move(NamedTuple):
    """Flows after a step; those that were not active are as they were before.

    position [N,3] in [-1, 1]; energy [N,1]; terminated [N] bool: it reached an output plane in this step; moving [N] bool: active
    and not terminated; age [N] int32; length [N]: of the move as clamped, before any reflection, 0 without one.
    """

    position: mx.array
    energy: mx.array
    terminated: mx.array
    moving: mx.array
    age: mx.array
    length: mx.array


def raw_move(displacement: mx.array, position: mx.array, noise: mx.array | None = None) -> mx.array:
    """position + clip(displacement, -0.5, 0.5) + noise [N, 3], not clamped."""
    raw = position + clamp(displacement, -LARGEST_DISPLACEMENT, LARGEST_DISPLACEMENT)
    return raw if noise is None else raw + noise


def bounded(raw: mx.array) -> mx.array:
    """Where a flow that wants to be at `raw` [N, 3] may be, in [-1, 1]."""
    # NaN compares false with every bound and would walk out of the lattice; clamping alone does not stop it.
    return clamp_to_lattice(sanitise(raw, LARGEST_COORDINATE))


def on_plane(position: mx.array) -> mx.array:
    """Which positions [N, 3] lie on an output plane, [N] bool."""
    z = mx.stop_gradient(position[:, 2])
    return (z <= -1.0) | (z >= 1.0)


def advance(
    displacement: mx.array,
    new_energy: mx.array,
    position: mx.array,
    energy: mx.array,
    noise: mx.array | None,
    active: mx.array,
    age: mx.array,
    *,
    reflection: bool = False,
    kernels: bool | None = None,
) -> Move:
    """Move the active flows.

        raw = position + clip(displacement, -0.5, 0.5) + noise;  next = clip(raw, -1, 1), with reflection off
        next = clip(reflect(raw), -1, 1), with reflection on;    terminated: clip(raw_z, -1, 1) is -1 or 1

    Gradients pass to displacement and position, new_energy and energy.

    Args:
        displacement: [N, 3], scaled but not yet clipped.
        new_energy: [N, 1], what an active flow carries from now on.
        position: [N, 3] in [-1, 1].
        energy: [N, 1].
        noise: [N, 3] or None; has no gradient.
        active: [N] bool.
        age: [N] int32.
        kernels: True or False forces the kernel or the plain graph.
    """
    if not use_kernel("advance", kernels):
        return advance_reference(displacement, new_energy, position, energy, noise, active, age, reflection=reflection)
    noisy = noise is not None
    drift = noise if noise is not None else mx.zeros((1, 3))
    move = _with_vjp(noisy, reflection)
    return Move(*move(displacement, new_energy, position, energy, drift, active, age))


def advance_reference(
    displacement: mx.array,
    new_energy: mx.array,
    position: mx.array,
    energy: mx.array,
    noise: mx.array | None,
    active: mx.array,
    age: mx.array,
    *,
    reflection: bool = False,
) -> Move:
    """`advance` in plain MLX: the specification."""
    drift = None if noise is None else mx.stop_gradient(noise)
    raw = raw_move(displacement.astype(mx.float32), position, drift)
    clamped = bounded(raw)
    moved = clamp_to_lattice(reflect(sanitise(raw, LARGEST_COORDINATE))) if reflection else clamped
    terminated = active & on_plane(clamped)
    # The length only decides who spawns and who is dropped, which is discrete: no gradient, and no root at 0 to guard.
    step = mx.where(active[:, None], mx.stop_gradient(clamped - position), 0.0)
    moved = mx.where(active[:, None], moved, position)
    return Move(
        position=moved,
        energy=mx.where(active[:, None], new_energy.astype(mx.float32), energy),
        terminated=terminated,
        moving=active & ~terminated,
        age=age + active,
        length=mx.sqrt(mx.sum(step * step, axis=1)),
    )


def forward(
    displacement: mx.array,
    new_energy: mx.array,
    position: mx.array,
    energy: mx.array,
    noise: mx.array | None,
    active: mx.array,
    age: mx.array,
    *,
    reflection: bool,
) -> Move:
    """The forward kernel."""
    flows = position.shape[0]
    inputs = {
        "displacement": displacement, "new_energy": as_type(new_energy, displacement.dtype), "position": position,
        "energy": energy, "noise": position if noise is None else noise, "active": active, "age": age,
    }  # fmt: skip
    outputs = {
        "next_position": ((flows, 3), mx.float32),
        "next_energy": ((flows, 1), mx.float32),
        "terminated": ((flows,), mx.bool_),
        "moving": ((flows,), mx.bool_),
        "next_age": ((flows,), mx.int32),
        "length": ((flows,), mx.float32),
    }
    template = {"T": displacement.dtype, "NOISY": noise is not None, "REFLECT": reflection}
    return Move(*call("advance", "forward", inputs, outputs, threads=flows, template=template))


def backward(
    d_position: mx.array,
    d_energy: mx.array,
    displacement: mx.array,
    position: mx.array,
    noise: mx.array | None,
    active: mx.array,
    *,
    reflection: bool,
) -> list[mx.array]:
    """The gradients of displacement, new_energy, position and energy, from those of the next position and energy."""
    flows = position.shape[0]
    inputs = {
        "displacement": displacement, "position": position, "noise": position if noise is None else noise,
        "active": active, "d_next_position": d_position, "d_next_energy": d_energy,
    }  # fmt: skip
    outputs = {
        "d_displacement": ((flows, 3), displacement.dtype),
        "d_new_energy": ((flows, 1), displacement.dtype),
        "d_position": ((flows, 3), mx.float32),
        "d_energy": ((flows, 1), mx.float32),
    }
    template = {"T": displacement.dtype, "NOISY": noise is not None, "REFLECT": reflection}
    return call("advance", "backward", inputs, outputs, threads=flows, template=template)


@functools.cache
def _with_vjp(noisy: bool, reflection: bool) -> Any:
    """The kernel as a differentiable function of its arrays."""

    @Differentiable
    def move(
        displacement: mx.array,
        new_energy: mx.array,
        position: mx.array,
        energy: mx.array,
        noise: mx.array,
        active: mx.array,
        age: mx.array,
    ) -> list[mx.array]:
        drift = noise if noisy else None
        return list(forward(displacement, new_energy, position, energy, drift, active, age, reflection=reflection))

    @move.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        displacement, new_energy, position, _, noise, active, age = primals
        drift = noise if noisy else None
        d_displacement, d_new_energy, d_position, d_energy = backward(
            cotangents[0], cotangents[1], displacement, position, drift, active, reflection=reflection
        )
        nothing = [mx.zeros_like(array) for array in (noise, active, age)]
        return d_displacement, as_type(d_new_energy, new_energy.dtype), d_position, d_energy, *nothing

    return move
