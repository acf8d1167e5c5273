"""Run a captured kernel over its whole grid, on this CPU."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np

from .capture import Argument, KernelError, Launch
from .compile import build

MESSAGE_BYTES = 1024
SLOT_BITS = (
    38,
    36,
    34,
)  # addresses for one buffer: the wider, the farther a bad index is still told from another buffer's
_reserved: list[tuple[int, int]] = []
_one_at_a_time = threading.Lock()  # the runtime keeps its state in globals


class KernelFault(KernelError):
    """The kernel ran into something undefined: out of bounds, a race, barrier divergence, a read of unwritten memory."""


class _Buffer(ctypes.Structure):  # mirrors Buffer in runtime/runtime.h
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("origin", ctypes.c_uint64),
        ("granule", ctypes.c_uint32),
        ("is_output", ctypes.c_uint32),
        ("initialised", ctypes.c_uint32),
    ]


class _Launch(ctypes.Structure):  # mirrors Launch in runtime/runtime.h
    _fields_ = [
        ("arena", ctypes.c_void_p),
        ("slot_bits", ctypes.c_uint64),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_uint32),
        ("checked", ctypes.c_uint32),
        ("grid", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3),
        ("seed", ctypes.c_uint32),
        ("message_capacity", ctypes.c_uint32),
        ("message", ctypes.c_char_p),
    ]


def run(
    launch: Launch, inputs: Sequence[mx.array | np.ndarray], *, checked: bool = True, seed: int = 0
) -> list[mx.array]:
    """Run every thread of `launch` on `inputs` and return its outputs.

    Args:
        launch: from `capture`.
        inputs: in the order of the kernel's inputs, of the captured shapes and dtypes (NumPy has no bfloat16: pass mx arrays).
        checked: watch every access. False is several times faster and crashes where a GPU would read garbage.
        seed: 0 runs threads and threadgroups in order, any other number in a random one: results must not depend on it.

    Raises:
        KernelFault: what happened, to which element of which buffer, by which thread.
        KernelCompileError: the source is not valid Metal.
    """
    given = [x if isinstance(x, mx.array) else mx.array(x) for x in inputs]
    if [(tuple(x.shape), x.dtype) for x in given] != list(zip(launch.input_shapes, launch.input_dtypes, strict=True)):
        wanted = list(zip(launch.input_shapes, launch.input_dtypes, strict=True))
        raise ValueError(
            f"{launch.name} was captured for inputs {wanted}, got {[(tuple(x.shape), x.dtype) for x in given]}"
        )
    library = build(launch, checked=checked)
    views = [_view(x, launch.ensure_row_contiguous) for x in given]
    outputs = [
        _fresh_output(s, d, launch.init_value) for s, d in zip(launch.output_shapes, launch.output_dtypes, strict=True)
    ]

    buffers = (_Buffer * len(launch.arguments))()
    alive: list[np.ndarray] = []  # ctypes holds bare addresses
    for buffer, argument in zip(buffers, launch.arguments, strict=True):
        data, origin, granule = _argument_data(argument, views, outputs)
        alive.append(data)
        buffer.name = argument.name.encode()
        buffer.data, buffer.bytes, buffer.origin, buffer.granule = data.ctypes.data, data.nbytes, origin, granule
        buffer.is_output = argument.role == "output"
        buffer.initialised = argument.role != "output" or launch.init_value is not None

    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    arena, slot_bits = _arena(library)
    request = _Launch(
        arena=arena,
        slot_bits=slot_bits,
        buffers=buffers,
        buffer_count=len(buffers),
        checked=checked,
        grid=launch.grid,
        threadgroup=launch.threadgroup,
        seed=seed,
        message_capacity=MESSAGE_BYTES,
        message=ctypes.cast(message, ctypes.c_char_p),
    )
    with _one_at_a_time:
        failed = library.metal_cpu_launch(ctypes.byref(request))
    if failed:
        raise KernelFault(f"{launch.name}: {message.value.decode()}")
    return [_to_mlx(o, s, d) for o, s, d in zip(outputs, launch.output_shapes, launch.output_dtypes, strict=True)]


@dataclass(frozen=True)
class _View:
    """The memory behind an array."""

    data: np.ndarray  # bytes
    origin: int  # offset of element 0, which is not the first with negative strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    itemsize: int


def _argument_data(argument: Argument, views: list[_View], outputs: list[np.ndarray]) -> tuple[np.ndarray, int, int]:
    """Bytes of one buffer, the offset of its first element, and the bytes of an element."""
    if argument.role == "output":
        out = outputs[argument.index]
        return out, 0, out.itemsize
    view = views[argument.index]
    if argument.role == "input":
        return view.data, view.origin, view.itemsize
    tables: dict[str, np.ndarray] = {
        "shape": np.array(view.shape, np.int32),
        "strides": np.array(view.strides, np.int64),
        "ndim": np.array([len(view.shape)], np.int32),
    }
    return tables[argument.role], 0, tables[argument.role].itemsize


def _view(x: mx.array, contiguous: bool) -> _View:
    if contiguous:
        x = mx.contiguous(x)
    raw = x.view(mx.uint16) if x.dtype == mx.bfloat16 else x
    mx.eval(raw)
    seen: np.ndarray = np.asarray(memoryview(cast(Any, raw)))  # keeps MLX's strides
    steps = [(n - 1) * s for n, s in zip(seen.shape, seen.strides, strict=True)]
    before = -sum(s for s in steps if s < 0)
    size = before + sum(s for s in steps if s > 0) + seen.itemsize if seen.size else 0
    start = seen.__array_interface__["data"][0] - before
    data = np.frombuffer(ctypes.string_at(start, size), np.uint8)
    return _View(data, before, tuple(x.shape), tuple(s // seen.itemsize for s in seen.strides), seen.itemsize)


def _fresh_output(shape: tuple[int, ...], dtype: mx.Dtype, init_value: float | None) -> np.ndarray:
    """Filled as MLX fills it; without an init_value with 0xFF bytes (NaN), for MLX leaves what the memory held."""
    if init_value is None:
        carrier = np.empty(math.prod(shape), _carrier(dtype))
        carrier.view(np.uint8).fill(0xFF)
        return carrier
    filled = mx.full((math.prod(shape),), init_value, dtype)
    return np.array(filled.view(mx.uint16) if dtype == mx.bfloat16 else filled)


def _to_mlx(data: np.ndarray, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    array = mx.array(data)
    return (array.view(mx.bfloat16) if dtype == mx.bfloat16 else array).reshape(shape)


def _carrier(dtype: mx.Dtype) -> np.dtype:
    return np.dtype(np.uint16) if dtype == mx.bfloat16 else np.array(mx.zeros((1,), dtype)).dtype


def _arena(library: ctypes.CDLL) -> tuple[int, int]:
    """One range of addresses for the whole process, reserved through whichever kernel runs first, and log2 of its slots."""
    library.metal_cpu_reserve.restype = ctypes.c_void_p
    for slot_bits in SLOT_BITS:
        if not _reserved and (address := library.metal_cpu_reserve(slot_bits)):
            _reserved.append((int(address), slot_bits))
    if not _reserved:
        raise OSError(
            f"the system refuses to reserve {64 << SLOT_BITS[-1] >> 40} TiB of addresses; is `ulimit -v` set?"
        )
    return _reserved[0]
