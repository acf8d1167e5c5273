"""Collection of flows into a surface: a masked scatter-add of softmax-weighted energies."""

import functools
from typing import Any

import mlx.core as mx

from .geometry import cell_index, distance_to_plane
from .kernel import call, suited, use_kernel

# exp overflows fp32 at 88. Weights are at most 1 + steps / 10 (|energy| <= 1 behind the tanh, distance >= 0), so up to
# this many steps the softmax needs no pass that finds each cell's largest weight first.
MAX_STEPS = 800

NAMES = ("energy", "position", "age", "sample", "collected")  # the kernels' inputs
GROUP = 256  # threads of a threadgroup of the deterministic kernel
# Cells of one of its threads where a surface has enough for such a group. Every group walks all flows of its sample: with more cells
# there are fewer groups, which look longer at each flow that is theirs.
CELLS = {"metal": 4, "cuda": 1}


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
    deterministic: bool = True,
    kernels: bool | None = None,
) -> mx.array:
    """The surface [batch, W*H] float32 that the collected flows leave.

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
        deterministic: of the kernel: add up each cell's flows in their order, so that every run gives the same bits; that is
            quickest where the flows of a sample are neighbours. False: in any order, with atomics. The plain graph adds
            in the order that MLX's scatter takes: always the same on a CPU, any on a GPU.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.
    """
    if not use_kernel("collect", kernels):
        return collect_reference(
            energy, position, age, sample, collected, batch=batch, width=width, height=height, method=method
        )
    function = _with_vjp(batch, width, height, method == "bilinear", deterministic)
    # The cell, like the age, has no gradient; neither has the mask.
    counts = (mx.stop_gradient(x) for x in (age, sample.astype(mx.int32), collected))
    surface: mx.array = function(energy, position, *counts)[0]
    return surface


def collect_reference(
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
    """`collect` in plain MLX: the specification."""
    value = energy[:, 0]
    mass = _mass(value, position, age, collected)
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


def shares(
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
) -> tuple[mx.array, mx.array]:
    """Where each flow is collected and what part it has there; arguments as `collect`.

    Returns:
        cell [N, K] int32 within the sample, -1 for flows that are not collected, and weight [N, K]; K is 1, or 4 if `bilinear`.
        A surface is in each cell the sum of weight * energy.
    """
    cell, share = cell_index(position, width, height)[:, None], mx.ones_like(energy)
    if method == "bilinear":
        cell, share = _bilinear(position, width, height)
    share = mx.where(collected[:, None], share, 0.0)
    mass = _mass(energy[:, 0], position, age, collected)[:, None] * share
    zeros, at = mx.zeros((batch * width * height,)), sample[:, None] * (width * height) + cell
    total, coverage = zeros.at[at].add(mass), mx.minimum(zeros.at[at].add(share), 1.0)
    weight = coverage[at] * mass / mx.where(total > 0, total, 1.0)[at]
    return mx.where(collected[:, None], cell, -1), weight


def _mass(value: mx.array, position: mx.array, age: mx.array, collected: mx.array) -> mx.array:
    """The exponentials [N] behind the softmax, of energies `value` [N]; 0 for flows that are not collected."""
    weight = mx.abs(value) / (1.0 + distance_to_plane(position)) * (1.0 + 0.1 * age.astype(mx.float32))
    return mx.where(collected, mx.exp(weight), 0.0)


def _bilinear(position: mx.array, width: int, height: int) -> tuple[mx.array, mx.array]:
    """The four cells [N, 4] around each position and its shares [N, 4] in them; the shares of a flow sum to 1."""
    x = (position[:, 0] + 1.0) / 2.0 * (width - 1)
    y = (position[:, 1] + 1.0) / 2.0 * (height - 1)
    left, top = _interval(x, width), _interval(y, height)
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


def _interval(x: mx.array, points: int) -> mx.array:
    """The interval between two of `points` points that x [N] lies in, as the lower of its ends. Has no gradient."""
    low = mx.floor(mx.stop_gradient(x))
    # As in `geometry.quantise`: a NaN would index out of bounds, and end the process.
    return mx.clip(mx.where(mx.isnan(low), 0.0, low), 0, points - 2)


@functools.cache
def _with_vjp(batch: int, width: int, height: int, bilinear: bool, deterministic: bool) -> Any:
    """The kernels as a differentiable function of energy, position, age, sample and collected."""
    template = {"W": width, "H": height, "BILINEAR": bilinear}

    @mx.custom_function
    def left(*arrays: mx.array) -> list[mx.array]:
        return (walk if deterministic else scatter)(dict(zip(NAMES, arrays, strict=True)), batch, template)

    @left.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
        inputs = dict(zip(NAMES, primals, strict=True))
        surface, cells = outputs
        d_energy, d_position = backward(inputs, cotangents[0], surface, cells, template)
        return d_energy, d_position, *(mx.zeros_like(primal) for primal in primals[2:])

    return left


def walk(inputs: dict[str, mx.array], batch: int, template: dict[str, Any]) -> list[mx.array]:
    """The deterministic kernel: surface [B, S] and, for the backward kernel, cells [B, S, 1 or 3]."""
    outputs, cells = _outputs(batch, template)
    sample = inputs["sample"]
    # Where the flows of each sample begin and end, so that no cell looks at those of other samples.
    bounds = {"range": ((batch, 2), mx.int32)}
    (ranges,) = call("collect", "ranges", {"sample": sample}, bounds, threads=sample.size, init_value=0, atomic=True)
    each = suited(CELLS) if cells >= suited(CELLS) * GROUP else 1
    threads = batch * -(-cells // (each * GROUP)) * GROUP
    sizes = {**template, "GROUP": GROUP, "EACH": each}
    return call("collect", "walk", inputs | {"range": ranges}, outputs, threads=threads, group=GROUP, template=sizes)


def scatter(inputs: dict[str, mx.array], batch: int, template: dict[str, Any]) -> list[mx.array]:
    """The kernel with atomics: as `walk`, with sums in any order."""
    outputs, cells = _outputs(batch, template)
    shape = (batch * cells, 3 if template["BILINEAR"] else 2)
    (sums,) = call(
        "collect", "add", inputs, {"sums": (shape, mx.float32)},
        threads=inputs["sample"].size, template=template, init_value=0, atomic=True,
    )  # fmt: skip
    return call("collect", "divide", {"sums": sums}, outputs, threads=batch * cells, template=template)


def backward(
    inputs: dict[str, mx.array],
    cotangent: mx.array,
    surface: mx.array,
    cells: mx.array,
    template: dict[str, Any],
) -> list[mx.array]:
    """The gradients of energy and position."""
    energy, position = inputs["energy"], inputs["position"]
    inputs = inputs | {"cotangent": cotangent.astype(mx.float32), "surface": surface, "cells": cells}
    outputs = {"d_energy": (energy.shape, energy.dtype), "d_position": (position.shape, position.dtype)}
    types = {"E": energy.dtype, "P": position.dtype}
    return call("collect", "backward", inputs, outputs, threads=energy.size, template={**template, **types})


def _outputs(batch: int, template: dict[str, Any]) -> tuple[dict[str, tuple[tuple[int, ...], mx.Dtype]], int]:
    """What the forward kernels give, and the cells of a surface."""
    cells = template["W"] * template["H"]
    kept = 3 if template["BILINEAR"] else 1
    return {"surface": ((batch, cells), mx.float32), "cells": ((batch, cells, kept), mx.float32)}, cells
