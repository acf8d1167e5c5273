"""Rows of a table by number.

MLX's own gather and scatter are compiled where they first run on CUDA, which takes seconds each, and its scatter adds with atomics,
in another order every time.
"""

import functools
import math
from typing import Any

import mlx.core as mx

from .kernel import as_type, call, columns_of_a_thread, use_kernel

GROUP = 256
BLOCK = 32  # threads side by side in a row, for which a threadgroup of the backward kernel works


def embedding(table: mx.array, ids: mx.array, *, kernels: bool | None = None) -> mx.array:
    """The rows of a table that `ids` name.

    Args:
        table: [V, d].
        ids: [...] integers of any size, in -V..V-1; negative ones count from the end. Any other gives a row of NaN, so that it
            shows, and no gradient; nothing outside the table is read.
        kernels: True or False forces the kernel or the plain graph; see `ops.kernel.use_kernel`.

    Raises:
        ValueError: ids are no integers.

    Returns:
        [..., d], of the dtype of `table`. Gradients of rows named several times are summed in float32, in the same order every time.
    """
    if not mx.issubdtype(ids.dtype, mx.integer):
        raise ValueError(f"ids: dtype {ids.dtype} came, accepted are integers")
    if not use_kernel("embedding", kernels) or not ids.size:
        return embedding_reference(table, ids)
    numbers = _within_int32(ids, table.shape[0]).reshape(-1)
    values: mx.array = _with_vjp()(table, numbers)[0]
    return values.reshape(*ids.shape, table.shape[1])


def embedding_reference(table: mx.array, ids: mx.array) -> mx.array:
    """`embedding` in plain MLX: the specification."""
    entries = table.shape[0]
    ids = _within_int32(ids, entries)
    known = (ids >= -entries) & (ids < entries)
    return mx.where(known[..., None], table[mx.where(known, ids, 0)], math.nan)


def _within_int32(ids: mx.array, entries: int) -> mx.array:
    """ids as int32. Wider ones beyond the table stay beyond it, rather than wrap around."""
    ids = mx.stop_gradient(ids)
    if ids.dtype in (mx.uint32, mx.uint64):
        ids = mx.minimum(ids, entries)
    elif ids.dtype == mx.int64:
        ids = mx.clip(ids, -entries - 1, entries)
    return as_type(ids, mx.int32)


@functools.cache
def _with_vjp() -> Any:
    @mx.custom_function
    def rows_of(table: mx.array, ids: mx.array) -> list[mx.array]:
        return forward(table, ids)

    @rows_of.vjp
    def gradients(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
        table, ids = primals
        return backward(table, outputs[1], cotangents[0]), mx.zeros_like(ids)

    return rows_of


def forward(table: mx.array, ids: mx.array) -> list[mx.array]:
    """The forward kernel: values [N, d] of ids [N] and, for the backward kernel, the row of each [N] int32, -1 for none."""
    template, columns = _template(table)
    outputs = {"values": ((ids.size, table.shape[1]), table.dtype), "rows": (ids.shape, mx.int32)}
    threads = ids.size * columns
    return call("embedding", "forward", {"table": table, "ids": ids}, outputs, threads=threads, template=template)


def backward(table: mx.array, rows: mx.array, cotangent: mx.array) -> mx.array:
    """The gradient of the table."""
    template, columns = _template(table)
    inputs = {"rows": rows, "order": mx.argsort(rows), "cotangent": as_type(cotangent, table.dtype)}
    outputs = {"d_table": (table.shape, table.dtype)}
    threads = rows.size * -(-columns // BLOCK) * GROUP
    return call(
        "embedding", "backward", inputs, outputs, threads=threads, group=GROUP, template=template, init_value=0.0
    )[0]


def _template(table: mx.array) -> tuple[dict[str, Any], int]:
    """The template arguments, and the threads of a row."""
    size = table.shape[1]
    width = columns_of_a_thread(size)
    return {"T": table.dtype, "D": size, "V": width}, size // width
