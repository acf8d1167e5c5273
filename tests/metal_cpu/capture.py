"""What MLX would hand to the Metal compiler: read one call of a `mx.fast.metal_kernel` object out of an exported graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx

MAX_BUFFERS = 31  # argument table of a Metal compute kernel
MAX_THREADS = 1024  # threads of one threadgroup on every Apple GPU
PARAMETER = re.compile(r"(?:const )?(device|constant) (.+?)([*&]) (\w+) \[\[buffer\(\d+\)\]\]")
ATTRIBUTE = re.compile(r"(uint3?) (\w+) \[\[(\w+)\]\]")


class KernelError(Exception):
    """A kernel that would not compile, or did something that Metal leaves undefined."""


@dataclass(frozen=True)
class Argument:
    """One buffer of the generated signature, in order."""

    name: str
    role: str  # "input", "shape", "strides", "ndim" or "output"
    index: int  # of the input or output it belongs to
    address_space: str  # "device" or "constant" (MLX puts inputs under 8 elements there)
    type: str  # as written in the signature, e.g. "float16_t" or "atomic<float>"
    by_reference: bool  # MLX passes scalars and ndim as `T&`


@dataclass(frozen=True)
class Launch:
    """One call of a kernel: everything Metal would be given except the bytes of the inputs."""

    name: str
    source: str  # complete generated MSL, without MLX's own prelude
    entry: str  # the function to call, with template arguments: "custom_kernel_k<float, 32>"
    grid: tuple[int, int, int]  # threads
    threadgroup: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    attributes: tuple[tuple[str, str], ...]  # ("uint3", "thread_position_in_grid"), ...
    template: tuple[tuple[str, Any], ...]
    input_shapes: tuple[tuple[int, ...], ...]
    input_dtypes: tuple[mx.Dtype, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    output_dtypes: tuple[mx.Dtype, ...]
    init_value: float | None
    ensure_row_contiguous: bool

    def edited(self, old: str, new: str) -> Launch:
        """The same launch with one place of its source changed; `old` must occur exactly once."""
        if (count := self.source.count(old)) != 1:
            raise ValueError(
                f"{old!r} occurs {count} times in the source of {self.name}: an edit needs exactly one place"
            )
        return replace(self, source=self.source.replace(old, new))


def record_call(
    kernel: Callable[..., Any], inputs: Sequence[mx.array], call: Mapping[str, Any], input_names: Sequence[str]
) -> Launch:
    """Export a graph that holds one call of `kernel` and read its CustomKernel primitive.

    `call` holds the keyword arguments of the call except `inputs`. Only shapes and dtypes of the inputs matter.
    """
    nodes: list[dict[str, Any]] = []

    def note(node: dict[str, Any]) -> None:
        if node["type"] == "primitive" and node["name"] == "CustomKernel":
            nodes.append(node)

    def only_the_kernel(*arrays: mx.array) -> Any:
        return kernel(**{**call, "inputs": list(arrays), "stream": mx.gpu})  # a CPU stream is refused while tracing

    mx.export_function(note, only_the_kernel, *[mx.zeros(x.shape, x.dtype) for x in inputs])
    (node,) = nodes
    # name, source, grid, threadgroup, shape_infos, ensure_row_contiguous, ...; the init_value is not among them.
    name, source, gx, gy, gz, tx, ty, tz, _, contiguous, *_ = node["arguments"]
    entry, arguments, attributes = read_signature(name, source, input_names, [o[1] for o in node["outputs"]])
    grid = (gx, gy, gz)
    launch = Launch(
        name=name,
        source=source,
        entry=entry,
        grid=grid,
        threadgroup=(min(tx, gx), min(ty, gy), min(tz, gz)),  # as MLX dispatches it
        arguments=arguments,
        attributes=attributes,
        template=tuple((n, v) for n, v in call.get("template") or ()),
        input_shapes=tuple(tuple(s) for _, s, _ in node["inputs"]),
        input_dtypes=tuple(d for _, _, d in node["inputs"]),
        output_shapes=tuple(tuple(s) for _, s, _ in node["outputs"]),
        output_dtypes=tuple(d for _, _, d in node["outputs"]),
        init_value=call.get("init_value"),
        ensure_row_contiguous=bool(contiguous),
    )
    if tx * ty * tz > MAX_THREADS:
        raise KernelError(f"{name}: a threadgroup of {tx * ty * tz} threads; Apple GPUs allow at most {MAX_THREADS}")
    if min(*launch.grid, *launch.threadgroup) < 1:
        raise KernelError(
            f"{name}: grid {launch.grid} and threadgroup {(tx, ty, tz)} must be at least 1 in each dimension"
        )
    return launch


def read_signature(
    name: str, source: str, input_names: Sequence[str], outputs: Sequence[Any]
) -> tuple[str, tuple[Argument, ...], tuple[tuple[str, str], ...]]:
    """Entry point, buffers and thread attributes of the function that MLX generated around the body."""
    match = re.search(rf"\[\[kernel\]\] void {re.escape(name)}\((.*?)\) \{{", source, re.DOTALL)
    if match is None:
        raise KernelError(f"{name}: no signature found in the source that MLX generated:\n{source}")
    instance = re.search(rf"decltype\(({re.escape(name)}<.*>)\)", source)
    entry = instance.group(1) if instance else name
    suffixes = {f"{n}_{role}": (role, i) for i, n in enumerate(input_names) for role in ("shape", "strides", "ndim")}
    arguments = []
    written = 0
    for space, type_name, mark, parameter in PARAMETER.findall(match.group(1)):
        if parameter in input_names:
            role, index = "input", list(input_names).index(parameter)
        elif parameter in suffixes:
            role, index = suffixes[parameter]
        else:
            role, index = "output", written
            written += 1
        arguments.append(Argument(parameter, role, index, space, type_name, mark == "&"))
    if written != len(outputs):
        raise KernelError(
            f"{name}: MLX generated a signature with {written} of {len(outputs)} outputs. It closes the parameter list too early "
            f"when a body uses _shape, _strides or _ndim but no thread attribute: name one, e.g. thread_position_in_grid"
        )
    if len(arguments) > MAX_BUFFERS:
        raise KernelError(
            f"{name}: {len(arguments)} buffers (shape, strides and ndim count); Metal allows {MAX_BUFFERS}"
        )
    return entry, tuple(arguments), tuple((t, a) for t, a, _ in ATTRIBUTE.findall(match.group(1)))
