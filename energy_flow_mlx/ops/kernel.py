"""Custom GPU kernels: from a source in `kernels/` to something that can be called, for Metal and for CUDA.

A source holds one op: its contract in a comment, functions, and the bodies, each after a line `//// name`. Bodies are Metal;
`kernels/cuda.h` spells the few words of Metal that they use for CUDA.
"""

import functools
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from ..config import ConfigError
from .cuda import call_cuda
from .failures import VARIABLE, KernelError, how_to_go_on, note_launch

Number = TypeVar("Number")

# Ops whose kernel was measured slower than MLX's own graph on a backend, or not measured yet: off there unless asked for.
NOT_DEFAULT = {"metal": frozenset({"flow_step"}), "cuda": frozenset({"flow_step"})}

# In an op's file, before its functions: functions that it shares with others. They are put in front, for compilers have no folder to look in.
INCLUDE = re.compile(r'^#include "(\w+\.h)"$', re.MULTILINE)

# Elements are counted in 32 bits, and MLX takes the grid as int.
MOST_ELEMENTS, MOST_THREADS = 2**32 - 1, 2**31 - 1


def backend() -> str:
    """The language that custom kernels have on this machine: "cuda" where MLX has CUDA, "metal" elsewhere."""
    return "cuda" if mx.cuda.is_available() else "metal"


def suited(numbers: Mapping[str, Number]) -> Number:
    """That of `numbers`, by the names of `backend`, for the kernels of this machine.

    They differ where a thread keeps many numbers or a launch has many groups: a core of an Apple GPU has 208 KiB of registers, which
    at 128 registers are 416 threads, and the largest chip 40 such cores (two of them 80); an H100 has 256 KiB for each of 132
    multiprocessors, lets a thread have 255, and is kept busy by many small groups.
    """
    return numbers[backend()]


def on_gpu() -> bool:
    """Whether the default device of MLX is a GPU."""
    return bool(mx.default_device().type == mx.gpu)


def use_kernel(op: str, wanted: bool | None = None) -> bool:
    """Whether `op` runs as a custom kernel.

    Args:
        op: its name, that of a file in `kernels/`.
        wanted: True or False forces either side; None asks the environment variable ENERGY_FLOW_KERNELS: `on`, `off`, or
            `auto` (the default), which takes the kernel on a GPU unless it was measured slower there or not yet (flow_step);
            behind it, joined by commas, ops that differ: `auto,-neuron` or `off,+heads`.

    Raises:
        ConfigError: ENERGY_FLOW_KERNELS holds something else.
    """
    if wanted is not None:
        return wanted
    mode, chosen = _choices(os.environ.get(VARIABLE, "auto"))
    if op in chosen:
        return chosen[op]
    if mode != "auto":
        return mode == "on"
    return on_gpu() and op not in NOT_DEFAULT[backend()]


def switched_off(op: str) -> bool:
    """Whether ENERGY_FLOW_KERNELS asks for MLX's own graph of `op`.

    Raises:
        ConfigError: ENERGY_FLOW_KERNELS holds something else than `use_kernel` takes.
    """
    mode, chosen = _choices(os.environ.get(VARIABLE, "auto"))
    return not chosen.get(op, mode != "off")


@functools.cache
def _choices(setting: str) -> tuple[str, dict[str, bool]]:
    """What ENERGY_FLOW_KERNELS says of all ops, and of single ones."""
    mode, *items = setting.split(",")
    if mode not in ("auto", "on", "off"):
        raise ConfigError(f"{VARIABLE}={setting!r} is not accepted: it takes auto, on or off, and then ,-op or ,+op")
    for item in items:
        if item[:1] not in ("-", "+") or item[1:] not in ops():
            raise ConfigError(
                f"{VARIABLE}={setting!r}: {item!r} is not accepted behind {mode}: it takes -op or +op, with op one of "
                f"{', '.join(ops())}"
            )
    return mode, {item[1:]: item[0] == "+" for item in items}


def call(
    op: str,
    body: str,
    inputs: Mapping[str, mx.array],
    outputs: Mapping[str, tuple[Sequence[int], mx.Dtype]],
    *,
    threads: int,
    group: int = 256,
    template: Mapping[str, Any] | None = None,
    init_value: float | None = None,
    atomic: bool = False,
) -> list[mx.array]:
    """Run one body of an op's source.

    Args:
        op: file name in `kernels/`, without `.metal`.
        body: which body of the file.
        inputs, outputs: by the names the body uses; outputs as (shape, dtype).
        threads: how many, in one dimension; rounded up to whole groups, at most MOST_THREADS.
        group: threads in a threadgroup.
        template: compile-time constants (int, bool, dtype). Each new set compiles anew, so sizes that vary go into shapes.
        init_value: what outputs hold before the kernel runs; None: nothing.
        atomic: outputs are added to with `add_to`.

    Raises:
        KernelError: there is no GPU backend, or an array or the grid is too large. A source that does not compile, or asks
            for more threads than the GPU has for it, raises MLX's own error when a result is evaluated; see `ops.failures`.
    """
    template = template or {}
    threads = -(-threads // group) * group
    sizes = [(name, array.size, MOST_ELEMENTS) for name, array in inputs.items()]
    sizes += [(name, math.prod(shape), MOST_ELEMENTS) for name, (shape, _) in outputs.items()]
    for name, size, most in [*sizes, ("the grid", threads, MOST_THREADS)]:
        if size > most:
            raise KernelError(
                f"{op} ({body}): {name} has {size:,} elements; kernels take up to {most:,}. {how_to_go_on([(op, body)])}"
            )
    note_launch(op, body, template, group)
    if backend() == "cuda":
        name, header, source = _parts(op, body, "cuda")
        return call_cuda(name, header, source, inputs, outputs, template, threads, group, init_value)
    kernel = build(op, body, tuple(inputs), tuple(outputs), atomic)
    try:
        result: list[mx.array] = kernel(
            inputs=list(inputs.values()),
            template=list(template.items()),
            grid=(threads, 1, 1),
            threadgroup=(group, 1, 1),
            output_shapes=[tuple(shape) for shape, _ in outputs.values()],
            output_dtypes=[dtype for _, dtype in outputs.values()],
            init_value=init_value,
        )
    except RuntimeError as error:
        if "No Metal back-end" not in str(error):
            raise
        raise KernelError(
            f"{op}: kernels are forced on (argument or {VARIABLE}=on), but this MLX has neither Metal nor CUDA"
        ) from error
    return result


@functools.cache
def build(op: str, body: str, inputs: tuple[str, ...], outputs: tuple[str, ...], atomic: bool) -> Any:
    """MLX's kernel object for one body in Metal; made once."""
    name, header, source = _parts(op, body, "metal")
    return mx.fast.metal_kernel(
        name=name,
        input_names=list(inputs),
        output_names=list(outputs),
        header=header,
        source=source,
        atomic_outputs=atomic,
    )


@functools.cache
def _parts(op: str, body: str, language: str) -> tuple[str, str, str]:
    """Name, header and source of a body."""
    functions, bodies = read_source(op)
    if body not in bodies:
        raise KernelError(f"kernels/{op}.metal has no body {body!r}: it holds {', '.join(bodies)}")
    # Compilers then name op, body and the line of the file in their errors.
    here = f"{op}/{body}"
    own = source_file(f"{op}.metal")
    first = own[: own.index(f"//// {body}\n")].count("\n") + 2
    names = [f"{language}.h", "common.h", *INCLUDE.findall(functions)]
    parts = {**{name: source_file(name) for name in names}, f"{op}.metal": INCLUDE.sub("", functions)}
    header = "\n".join(f'#line 1 "{here}/{name}"\n{text}' for name, text in parts.items())
    source = f'#line {first} "{here}/{op}.metal"\n{bodies[body]}'
    # MLX keeps compiled kernels by name: the name must change with the source.
    mark = hashlib.sha256(f"{header}\0{source}".encode()).hexdigest()[:12]
    return f"{op}_{body}_{mark}", header, source


@functools.cache
def read_source(op: str) -> tuple[str, dict[str, str]]:
    """The functions and, by name, the bodies of `kernels/OP.metal`."""
    functions, *parts = re.split(r"^//// (\w+)\n", source_file(f"{op}.metal"), flags=re.MULTILINE)
    return functions, dict(zip(parts[::2], parts[1::2], strict=True))


@functools.cache
def ops() -> tuple[str, ...]:
    """Every op that has a source in `kernels/`."""
    return tuple(sorted({path.stem for folder in folders() for path in folder.glob("*.metal")}))


def source_file(name: str) -> str:
    """The text of a file of `kernels/`.

    Raises:
        FileNotFoundError: there is none; names the places looked at.
    """
    for folder in folders():
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise FileNotFoundError(f"{name} is in none of {', '.join(map(str, folders()))}")


def folders() -> list[Path]:
    """Where kernel sources lie: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return [package / "kernels", package.parent / "kernels"]


def columns_of_a_thread(size: int, most: int = 4) -> int:
    """How many neighbouring columns of a row of `size`, up to `most`, a thread takes at a time: what `load_some` of kernels/common.h
    can load."""
    return next(columns for columns in (4, 2, 1) if columns <= most and size % columns == 0)


@functools.cache
def setting(*values: float) -> mx.array:
    """Numbers for a kernel, as float32 [n]. Kept, so that a step makes no new constants."""
    return mx.array(values, dtype=mx.float32)


@functools.cache
def whole(*numbers: int) -> mx.array:
    """Whole numbers for a kernel, as int32 [n]. Kept."""
    return mx.array(numbers, dtype=mx.int32)


@functools.cache
def filler() -> mx.array:
    """Zeros in the place of a tensor that a kernel could take and is not given. Kept.

    Metal puts inputs of fewer than 8 elements into another address space, which takes a kernel of its own.
    """
    return mx.zeros((8,))


def as_type(array: mx.array, dtype: mx.Dtype) -> mx.array:
    """`array` in `dtype`; itself if it is (astype would leave a copy in the graph)."""
    return array if array.dtype == dtype else array.astype(dtype)
