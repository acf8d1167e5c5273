"""Bytes and kernel launches of a function of MLX arrays, plain or with custom kernels; the formula is in kernels.py."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

Function = Callable[..., Any]


class CountedFunction:
    """mx.custom_function that can also be called as the plain functions it is made of: exported graphs cannot hold the real one."""

    called: list[tuple["CountedFunction", tuple[mx.array, ...], Any]] | None = None  # while a graph is counted
    real = mx.custom_function

    def __init__(self, function: Function) -> None:
        self.function, self.differentiable = function, CountedFunction.real(function)

    def vjp(self, gradients: Function) -> "CountedFunction":
        self.gradients = gradients
        self.differentiable.vjp(gradients)
        return self

    def jvp(self, tangents: Function) -> "CountedFunction":
        self.differentiable.jvp(tangents)
        return self

    def __call__(self, *arrays: mx.array) -> Any:
        if CountedFunction.called is None:
            return self.differentiable(*arrays)
        outputs = self.function(*arrays)
        CountedFunction.called.append((self, arrays, outputs))
        return outputs


mx.custom_function = CountedFunction  # type: ignore[assignment, misc]  # before the ops are imported

from energy_flow_mlx.doctor.cases import Case, both, floating, leaves  # noqa: E402
from energy_flow_mlx.ops import kernel  # noqa: E402

VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "StopGradient",
    "Transpose", "Unflatten", "View",
}  # fmt: skip


@dataclasses.dataclass
class Cost:
    bytes: int = 0
    launches: int = 0


def count_graph(function: Function, arrays: Sequence[mx.array], free: set[str]) -> Cost:
    """Bytes and launches of a graph by the formula above; primitives named in `free` cost nothing."""
    cost = Cost()
    reads: dict[str, int] = {}  # what reading an array costs: less than its size behind a broadcast

    def size(entry: tuple[str, tuple[int, ...], mx.Dtype]) -> int:
        return math.prod(entry[1]) * entry[2].size

    def note(node: dict[str, Any]) -> None:
        if node["type"] != "primitive":
            return
        inputs, outputs = node["inputs"], node["outputs"]
        read = [min(reads.get(entry[0], size(entry)), size(entry)) for entry in inputs]
        if node["name"] in VIEWS:
            reads.update({entry[0]: read[0] for entry in outputs if node["name"] in ("Broadcast", "ExpandDims")})
            return
        if node["name"] in free:
            return
        written = sum(map(size, outputs))
        if node["name"].startswith("Gather"):
            read[0] = min(read[0], written)
        cost.bytes += sum(read) + written
        cost.launches += 1

    mx.export_function(note, function, *arrays)
    return cost


@contextmanager
def counted_kernels(cost: Cost) -> Iterator[None]:
    """Inside, custom kernels add to `cost` and give zeros, which cost nothing if `Full` and `Depends` are free."""

    def build(op: str, body: str, names: Sequence[str], *_: Any) -> Function:
        def run(**call: Any) -> list[mx.array]:
            outputs = [mx.zeros(*output) for output in zip(call["output_shapes"], call["output_dtypes"], strict=True)]
            written = sum(output.nbytes for output in outputs)
            filled = call["init_value"] is not None
            read = {id(array): (name, array.nbytes) for name, array in zip(names, call["inputs"], strict=True)}
            cost.bytes += sum(min(size, written) if name == "table" else size for name, size in read.values())
            cost.bytes += written * (2 if filled else 1)
            cost.launches += 1 + (len(outputs) if filled else 0)
            return mx.depends(outputs, list(call["inputs"]))  # what made the inputs counts too

        return run

    before = kernel.build, kernel.backend
    kernel.build, kernel.backend = build, lambda: "metal"  # type: ignore[assignment]
    CountedFunction.called = []
    try:
        yield
    finally:
        kernel.build, kernel.backend = before
        CountedFunction.called = None


def count_kernel(case: Case, backward: bool) -> Cost:
    cost = Cost()

    def run(*arrays: mx.array) -> list[mx.array]:
        outputs = leaves(case.function(True, *arrays))
        if backward:
            assert CountedFunction.called is not None
            ((function, primals, results),) = CountedFunction.called
            several = isinstance(results, (list, tuple))
            cotangents = [mx.zeros_like(result) for result in leaves(results)]
            gradients = function.gradients(
                primals if len(primals) > 1 else primals[0], cotangents if several else cotangents[0], results
            )
            outputs += leaves(gradients)
        return outputs

    with counted_kernels(cost):
        rest = count_graph(run, case.arrays, {"Full", "Depends"})
    return Cost(cost.bytes + rest.bytes, cost.launches + rest.launches)


def count(case: Case) -> dict[str, dict[str, int]]:
    """Bytes and launches, by direction."""
    mx.eval(case.held)  # a graph that is exported holds no others
    described: list[mx.array] = []

    def forward(*arrays: mx.array) -> list[mx.array]:
        described[:] = leaves(case.function(False, *arrays))
        return described

    plain = count_graph(forward, case.arrays, set())
    outputs = [mx.zeros(array.shape, array.dtype) for array in described]
    written = sum(array.nbytes for array in outputs)
    reads = [min(x.nbytes, written) if index in case.picked else x.nbytes for index, x in enumerate(case.arrays)]
    read = sum(reads)
    kernel_cost = count_kernel(case, False)
    counted = {"forward": row(read + written, plain, kernel_cost)}
    if case.floats:
        cotangents = floating(outputs)
        gradients = sum(array.nbytes for array in case.arrays[: case.floats])
        needed = read - sum(reads[index] for index in case.unread)
        needed += sum(x.nbytes for x in cotangents) - sum(outputs[index].nbytes for index in case.constant)
        plain = count_graph(both(case, False), [*case.arrays, *cotangents], set())
        counted["both"] = row(read + written + needed + gradients, plain, count_kernel(case, True))
    return counted


def row(must: int, plain: Cost, own: Cost) -> dict[str, int]:
    return {
        "must_bytes": must, "plain_bytes": plain.bytes, "kernel_bytes": own.bytes,
        "plain_launches": plain.launches, "kernel_launches": own.launches, "launches_saved": plain.launches - own.launches,
    }  # fmt: skip
