"""Collection of flows into a surface: a masked scatter-add of softmax-weighted energies."""

import mlx.core as mx

from ..geometry import cell_index, distance_to_plane

# exp overflows fp32 at 88. Weights are at most 1 + steps / 10 (|energy| <= 1 behind the tanh, distance >= 0), so up to
# this many steps the softmax needs no pass that finds each cell's largest weight first.
MAX_STEPS = 800


def collect(
    energy: mx.array,
    position: mx.array,
    age: mx.array,
    sample: mx.array,
    collected: mx.array,
    *,
    batch: int,
    width: int,
    height: int,
    method: str = "nearest",
) -> mx.array:
    """The surface [batch, W*H] that the collected flows leave (pytorch_energy_flow, section 3).

    weight = |energy| / (1 + distance to the nearest plane) * (1 + 0.1 age); a cell's value is the sum of
    softmax(weight) * energy over its flows; empty cells are 0.

    `nearest` puts a flow into one cell. `bilinear` gives it a share b in each of the four cells around it: softmax weights
    are multiplied by b, and the mean by the cell's coverage min(1, sum b), so that the surface is continuous in x and y and
    equals `nearest` for flows that sit on cell centres.

    Args:
        energy: [N, 1], each in [-1, 1].
        position: [N, 3]; x and y choose the cell, z the distance.
        age: [N], steps taken, at most MAX_STEPS.
        sample: [N] int32, which row of the surface.
        collected: [N] bool; other flows leave nothing.
    """
    value = energy[:, 0]
    weight = mx.abs(value) / (1.0 + distance_to_plane(position)) * (1.0 + 0.1 * age.astype(mx.float32))
    mass = mx.where(collected, mx.exp(weight), 0.0)
    first = sample * (width * height)
    zeros = mx.zeros((batch * width * height,), dtype=mx.float32)

    if method == "nearest":
        cell = mx.stop_gradient(first + cell_index(position, width, height))
        total = zeros.at[cell].add(mass)
        surface = zeros.at[cell].add(mass * value) / mx.where(total > 0, total, 1.0)
    else:
        corner, share = _bilinear(position, width, height)  # [N, 4], [N, 4]
        cell = mx.stop_gradient(first[:, None] + corner)
        share = mx.where(collected[:, None], share, 0.0)
        mass = mass[:, None] * share
        total = zeros.at[cell].add(mass)
        coverage = mx.minimum(zeros.at[cell].add(share), 1.0)
        surface = coverage * zeros.at[cell].add(mass * value[:, None]) / mx.where(total > 0, total, 1.0)
    return surface.reshape(batch, width * height)


def _bilinear(position: mx.array, width: int, height: int) -> tuple[mx.array, mx.array]:
    """The four cells [N, 4] around each position and its shares [N, 4] in them; the shares of a flow sum to 1."""
    x = (position[:, 0] + 1.0) / 2.0 * (width - 1)
    y = (position[:, 1] + 1.0) / 2.0 * (height - 1)
    left = mx.clip(mx.floor(mx.stop_gradient(x)), 0, width - 2)
    top = mx.clip(mx.floor(mx.stop_gradient(y)), 0, height - 2)
    right_share, low_share = x - left, y - top
    cell = top.astype(mx.int32) * width + left.astype(mx.int32)
    cells = mx.stack([cell, cell + 1, cell + width, cell + width + 1], axis=1)
    shares = mx.stack(
        [
            (1 - right_share) * (1 - low_share),
            right_share * (1 - low_share),
            (1 - right_share) * low_share,
            right_share * low_share,
        ],
        axis=1,
    )
    return cells, shares
