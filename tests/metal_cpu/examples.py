"""Small kernels that the harness is tested with. Each is a function over MLX arrays, as the project's own kernels are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx

Output = tuple[Sequence[int], mx.Dtype]


def call(
    body: str,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Output],
    grid: Sequence[int],
    threadgroup: Sequence[int] = (32, 1, 1),
    *,
    template: Sequence[tuple[str, Any]] | None = None,
    init_value: float | None = None,
    **constructor: Any,
) -> list[mx.array]:
    """Build a kernel named "example" and call it once."""
    kernel: Any = mx.fast.metal_kernel(
        name="example", input_names=list(inputs), output_names=list(outputs), source=body, **constructor
    )
    return kernel(
        inputs=list(inputs.values()),
        template=template,
        grid=tuple(grid),
        threadgroup=tuple(threadgroup),
        output_shapes=[tuple(shape) for shape, _ in outputs.values()],
        output_dtypes=[dtype for _, dtype in outputs.values()],
        init_value=init_value,
    )


AFFINE = """
    uint i = thread_position_in_grid.x;
    y[i] = T(float(x[i]) * 1.5f + 0.25f);
"""


def affine(x: mx.array, threadgroup: int = 256) -> mx.array:
    """1.5 x + 0.25 in fp32, rounded to the dtype of x; one thread an element, no bound test needed."""
    return call(
        AFFINE, {"x": x}, {"y": (x.shape, x.dtype)}, (x.size, 1, 1), (threadgroup, 1, 1), template=[("T", x.dtype)]
    )[0]


ROW_SUM = """
    uint row = threadgroup_position_in_grid.x;
    uint lane = thread_position_in_threadgroup.x;
    uint width = x_shape[1];
    threadgroup float partial[GROUP / 32];

    float sum = 0.0f;
    for (uint column = lane; column < width; column += GROUP) sum += float(x[row * width + column]);
    sum = simd_sum(sum);
    if (thread_index_in_simdgroup == 0) partial[simdgroup_index_in_threadgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup_index_in_threadgroup == 0) {
        sum = simd_sum(lane < GROUP / 32 ? partial[lane] : 0.0f);
        if (lane == 0) y[row] = sum;
    }
"""


def row_sum(x: mx.array, group: int = 128) -> mx.array:
    """[R, C] -> [R] in fp32: one threadgroup a row, SIMD sums joined through threadgroup memory."""
    rows = x.shape[0]
    return call(
        ROW_SUM,
        {"x": x},
        {"y": ((rows,), mx.float32)},
        (rows * group, 1, 1),
        (group, 1, 1),
        template=[("GROUP", group)],
    )[0]


TREE_SUM = """
    threadgroup float tile[GROUP];
    uint t = thread_position_in_threadgroup.x;
    uint i = thread_position_in_grid.x;
    tile[t] = i < n[0] ? x[i] : 0.0f;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint half_width = GROUP / 2; half_width > 0; half_width /= 2) {
        if (t < half_width) tile[t] += tile[t + half_width];
        threadgroup_barrier(mem_flags::mem_threadgroup); // after the step
    }
    if (t == 0) y[threadgroup_position_in_grid.x] = tile[0];
"""


def tree_sum(x: mx.array, group: int = 64) -> mx.array:
    """[N] -> [ceil(N / group)]: the tree reduction with a barrier after each step."""
    groups = -(-x.size // group)
    inputs = {"x": x, "n": mx.array([x.size], mx.uint32)}
    return call(
        TREE_SUM,
        inputs,
        {"y": ((groups,), mx.float32)},
        (groups * group, 1, 1),
        (group, 1, 1),
        template=[("GROUP", group)],
    )[0]


SCATTER_ADD = """
    uint i = thread_position_in_grid.x;
    atomic_fetch_add_explicit(&sums[cell[i]], value[i], memory_order_relaxed);
"""


def scatter_add(value: mx.array, cell: mx.array, cells: int) -> mx.array:
    """Sum value[i] into sums[cell[i]] with device atomics."""
    return call(
        SCATTER_ADD,
        {"value": value, "cell": cell},
        {"sums": ((cells,), mx.float32)},
        (value.size, 1, 1),
        init_value=0,
        atomic_outputs=True,
    )[0]


PREFIX_SUM = """
    threadgroup uint totals[32];
    uint t = thread_position_in_threadgroup.x;
    uint lane = thread_index_in_simdgroup;
    uint warp = simdgroup_index_in_threadgroup;
    uint own = t < n[0] ? x[t] : 0u;
    uint before = simd_prefix_exclusive_sum(own);
    if (lane == 31) totals[warp] = before + own;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (warp == 0) {
        uint offset = simd_prefix_exclusive_sum(lane < simdgroups_per_threadgroup ? totals[lane] : 0u);
        totals[lane] = offset;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup); // offsets are ready
    if (t < n[0]) y[t] = before + totals[warp];
"""


def prefix_sum(x: mx.array) -> mx.array:
    """Exclusive prefix sum of up to 1024 uint32 in one threadgroup."""
    group = -(-x.size // 32) * 32
    return call(
        PREFIX_SUM,
        {"x": x, "n": mx.array([x.size], mx.uint32)},
        {"y": (x.shape, mx.uint32)},
        (group, 1, 1),
        (group, 1, 1),
    )[0]


GATED_FORWARD = """
    uint i = thread_position_in_grid.x;
    if (i >= uint(x_shape[0])) return;
    float gate = 1.0f / (1.0f + metal::exp(-float(g[i])));
    y[i] = T(float(x[i]) * gate);
"""

GATED_BACKWARD = """
    uint i = thread_position_in_grid.x;
    if (i >= uint(x_shape[0])) return;
    float gate = 1.0f / (1.0f + metal::exp(-float(g[i])));
    float dy = float(cotangent[i]);
    dx[i] = T(dy * gate);
    dg[i] = T(dy * float(x[i]) * gate * (1.0f - gate));
"""


def gated_reference(x: mx.array, g: mx.array) -> mx.array:
    """x · sigmoid(g)."""
    return x * mx.sigmoid(g)


@mx.custom_function
def gated(x: mx.array, g: mx.array) -> mx.array:
    """`gated_reference` as a forward and a backward kernel, over a grid rounded up to whole threadgroups."""
    size = -(-x.size // 32) * 32
    return call(GATED_FORWARD, {"x": x, "g": g}, {"y": (x.shape, x.dtype)}, (size, 1, 1), template=[("T", x.dtype)])[0]


@gated.vjp
def gated_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, mx.array]:
    x, g = primals
    size = -(-x.size // 32) * 32
    inputs = {"x": x, "g": g, "cotangent": cotangent}
    outputs = {"dx": (x.shape, x.dtype), "dg": (g.shape, g.dtype)}
    dx, dg = call(GATED_BACKWARD, inputs, outputs, (size, 1, 1), template=[("T", x.dtype)])
    return dx, dg
