"""Coordinates of the lattice: everything is arithmetic, O(1) in the number of cells.

Positions are normalised to [-1, 1] on each axis. Lattice points have integer ix in 0..W-1, iy in 0..H-1 and iz in 0..D;
a surface is indexed row-major, cell = iy * W + ix.
"""

import mlx.core as mx

from .numerics import clamp


def _spans(width: int, height: int, depth: int) -> mx.array:
    """Intervals between lattice points along x, y, z: D + 1 planes along z, but W and H points along x and y."""
    return mx.array([width - 1, height - 1, depth], dtype=mx.float32)


def normalise(lattice: mx.array, width: int, height: int, depth: int) -> mx.array:
    """Lattice coordinates [N, 3] (ix, iy, iz) to positions [N, 3] in [-1, 1]: 2 i / span - 1."""
    return 2.0 * lattice.astype(mx.float32) / _spans(width, height, depth) - 1.0


def quantise(position: mx.array, width: int, height: int, depth: int) -> mx.array:
    """Positions [N, 3] to the nearest lattice point [N, 3] int32 (ix, iy, iz), ties to even. Has no gradient."""
    spans = _spans(width, height, depth)
    scaled = mx.round((mx.stop_gradient(position) + 1.0) / 2.0 * spans)
    # A NaN would turn into an arbitrary integer and index out of bounds: it goes to the first cell.
    scaled = mx.where(mx.isnan(scaled), 0.0, scaled)
    return mx.clip(scaled, 0.0, spans).astype(mx.int32)


def cell_index(position: mx.array, width: int, height: int) -> mx.array:
    """The surface cell [N] int32 that each position [N, 3] (or [N, 2]) is nearest to: iy * W + ix. Has no gradient."""
    point = quantise(mx.concatenate([position[:, :2], mx.zeros_like(position[:, :1])], axis=1), width, height, 1)
    return point[:, 1] * width + point[:, 0]


def reflect(position: mx.array) -> mx.array:
    """Mirror x and y of positions [N, 3] at the side walls -1 and 1, once; z passes. The result is not clamped."""
    side = position[:, :2]
    mirrored = mx.where(side < -1.0, -2.0 - side, mx.where(side > 1.0, 2.0 - side, side))
    return mx.concatenate([mirrored, position[:, 2:]], axis=1)


def clamp_to_lattice(position: mx.array) -> mx.array:
    """Positions [N, 3] clamped to [-1, 1]; the gradient passes inside and at the wall, as torch's clamp does."""
    return clamp(position, -1.0, 1.0)


def nearest_plane(position: mx.array) -> mx.array:
    """z of the output plane nearest to positions [N, 3]: +1 for z > 0, else -1 (so -1 on a tie). Returns [N]."""
    return mx.where(mx.stop_gradient(position[:, 2]) > 0, 1.0, -1.0)


def distance_to_plane(position: mx.array) -> mx.array:
    """Distance [N] of positions [N, 3] to the nearest output plane: 1 - |z|."""
    return 1.0 - mx.abs(position[:, 2])
