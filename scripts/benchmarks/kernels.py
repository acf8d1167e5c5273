"""The custom kernels beside MLX's own graph: `python scripts/benchmarks/kernels.py [--json FILE]`.

For each op, preset and direction:

    must      MB that have to move: each input read once, each output written once (backward: the outputs' gradients and those inputs read
              that the derivative depends on, the gradients of the inputs written)
    plain     MB that the plain graph moves, and its kernel launches. Formula: the graph is exported; every primitive that is not a view
              reads each input and writes each output once and is one launch. A view is free, what is read through a broadcast counts
              once, and a gather reads what it returns. `mx.compile` merges some of these launches, so this is the eager graph. On a
              machine without a GPU MLX makes mx.fast.layer_norm of many primitives, and so they are counted; on one with a GPU it is one.
    kernel    the same of the graph with the custom kernel
    ms        on a GPU: plain graph, plain graph under mx.compile (with --compiled), and kernel. Medians over --repeats evaluations of many
              independent calls each, so that the time of one launch does not count. "both" is forward and backward.
    share     must / ms, as a share of the bandwidth of a large copy that the same run measures. Inputs that fit into the cache can be over 1.

Without a GPU only the counted columns are printed. Random data; each preset's largest batch whose inputs fit into --memory GB.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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

    def __call__(self, *arrays: mx.array) -> Any:
        if CountedFunction.called is None:
            return self.differentiable(*arrays)
        outputs = self.function(*arrays)
        CountedFunction.called.append((self, arrays, outputs))
        return outputs


mx.custom_function = CountedFunction  # type: ignore[assignment, misc]  # before the ops are imported

from energy_flow_mlx import EnergyConfig  # noqa: E402
from energy_flow_mlx.models.mapper import intermediate_size  # noqa: E402
from energy_flow_mlx.ops import (  # noqa: E402
    adamw,
    advance,
    bias_gelu_norm,
    collect,
    gru_gates,
    heads,
    kernel,
    masked_mean,
    neuron,
    spawn,
)

VIEWS = {
    "AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "StopGradient",
    "Transpose", "Unflatten", "View",
}  # fmt: skip
INNER = 64  # width of the displacement head


@dataclasses.dataclass
class Case:
    """One op with arguments: `function(kernels, *arrays)`; the first `floats` arrays have gradients. The derivative does not depend on
    the arrays in `unread`, and the outputs in `constant` have none."""

    function: Callable[..., Any]
    arrays: list[mx.array]
    floats: int
    unread: tuple[int, ...] = ()
    constant: tuple[int, ...] = ()


@dataclasses.dataclass
class Cost:
    bytes: int = 0
    launches: int = 0


# -- the cases ---------------------------------------------------------------------------------------------------------


def normal(*shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape).astype(dtype)


def uniform(*shape: int) -> mx.array:
    return mx.random.uniform(-1, 1, shape)


def some(*shape: int) -> mx.array:
    return mx.random.uniform(0, 1, shape) < 0.8


def ages(flows: int) -> mx.array:
    return mx.random.randint(1, 20, (flows,), dtype=mx.int32)


def advance_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    n = batch * config.slots_per_sample
    size = {"width": config.lattice_width, "height": config.lattice_height, "reflection": True}

    def function(kernels: bool, *a: mx.array) -> Any:
        return advance.advance(*a, **size, kernels=kernels)

    halves = [normal(n, 3, dtype=dtype), normal(n, 1, dtype=dtype)]
    return Case(function, [*halves, uniform(n, 3), uniform(n, 1), normal(n, 3), some(n), ages(n)], 4, unread=(1, 3, 6), constant=(7,))


def gru_gates_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    n, h = batch * config.slots_per_sample, config.carrier_hidden_size

    def function(kernels: bool, *a: mx.array) -> Any:
        return gru_gates.gru_gates(*a, bound=10.0, kernels=kernels)

    gates = [normal(n, 3 * h, dtype=dtype), normal(n, 3 * h, dtype=dtype)]
    return Case(function, [*gates, normal(3 * h), normal(h), normal(n, h, dtype=dtype), some(n)], 5)


def neuron_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    n, h, f = batch * config.slots_per_sample, config.neuron_hidden_dim, config.neuron_output_dim
    shapes = [(3, 3), (3,), (h, 4), (h,), (h,), (h,), (h, h), (h,), (h,), (h,), (f, h), (f,)]
    padded = -(-(f + 1) // 8) * 8

    def function(kernels: bool, position: mx.array, energy: mx.array, *weights: mx.array) -> Any:
        options: dict[str, Any] = {"padded": padded, "bound": 10.0, "dtype": dtype}
        return neuron.neuron(position, energy, weights, **options, kernels=kernels)

    return Case(function, [uniform(n, 3), uniform(n, 1), *(0.3 * normal(*shape) for shape in shapes)], 14)


def heads_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    n, own = batch * config.slots_per_sample, config.carrier_hidden_size // 2

    def function(kernels: bool, *a: mx.array) -> Any:
        return heads.heads(*a, kernels=kernels)

    weights = [normal(own + INNER), 0.1 * normal(own), 0.1 * normal(3, INNER), normal(4)]
    return Case(function, [normal(n, own + INNER, dtype=dtype), *weights, mx.ones((1,))], 5)


def collect_case(
    config: EnergyConfig, batch: int, dtype: mx.Dtype, method: str = "nearest", deterministic: bool = True
) -> Case:
    n = batch * config.slots_per_sample
    size = {"batch": batch, "width": config.lattice_width, "height": config.lattice_height, "method": method}

    def function(kernels: bool, *a: mx.array) -> Any:
        return collect.collect(*a, **size, deterministic=deterministic, kernels=kernels)

    sample = mx.repeat(mx.arange(batch, dtype=mx.int32), config.slots_per_sample)
    return Case(function, [uniform(n, 1), uniform(n, 3), ages(n), sample, some(n)], 2)


def spawn_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    slots, children = config.slots_per_sample, config.slots_per_sample - config.surface_dim
    options = {"slots": children, "threshold": config.spawn_movement_threshold_ratio, "most": config.max_spawn_per_step}

    def function(kernels: bool, *a: mx.array) -> Any:
        return spawn.spawn(*a, **options, kernels=kernels)

    length = mx.abs(uniform(batch, slots)) * 2.5 * config.spawn_movement_threshold_ratio
    taken = mx.full((batch,), children // 4, dtype=mx.int32)
    return Case(function, [length, some(batch, slots), taken, mx.full((batch,), 1_000_000, dtype=mx.int32)], 0)


def bias_gelu_norm_case(config: EnergyConfig, batch: int, dtype: mx.Dtype, norm_first: bool = False) -> Case:
    """The first layer of the mapper."""
    d = intermediate_size(config.embedding_dim, config.surface_dim)

    def function(kernels: bool, *a: mx.array) -> Any:
        return bias_gelu_norm.bias_gelu_norm(*a, norm_first=norm_first, kernels=kernels)

    return Case(function, [normal(batch, d, dtype=dtype), normal(d), normal(d), normal(d)], 4)


def masked_mean_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    tokens, d = config.text_max_length, config.text_model_dim

    def function(kernels: bool, *a: mx.array) -> Any:
        return masked_mean.masked_mean(*a, kernels=kernels)

    return Case(function, [normal(batch, tokens, d, dtype=dtype), some(batch, tokens)], 1, unread=(0,))


def adamw_case(config: EnergyConfig, batch: int, dtype: mx.Dtype) -> Case:
    """On the largest weight of a GRU layer."""
    h = config.carrier_hidden_size
    numbers = mx.array([1e-3, 1e-5, 0.9, 0.999, 1e-8, 0.1, 0.01])

    def function(kernels: bool, *a: mx.array) -> Any:
        return adamw.adamw(*a[:4], adamw.AdamStep(*a[4:]), 0, kernels=kernels)

    tensors = [normal(3 * h, h), normal(3 * h, h), normal(3 * h, h), mx.abs(normal(3 * h, h))]
    return Case(function, [*tensors, numbers, mx.ones((1,)), mx.array([True])], 0)


# The names before a comma are those in kernels/.
CASES: dict[str, Callable[[EnergyConfig, int, mx.Dtype], Case]] = {
    "advance": advance_case,
    "gru_gates": gru_gates_case,
    "neuron": neuron_case,
    "heads": heads_case,
    "spawn": spawn_case,
    "collect, nearest": collect_case,
    "collect, nearest, atomics": lambda *a: collect_case(*a, deterministic=False),
    "collect, bilinear": lambda *a: collect_case(*a, method="bilinear"),
    "collect, bilinear, atomics": lambda *a: collect_case(*a, method="bilinear", deterministic=False),
    "bias_gelu_norm": bias_gelu_norm_case,
    "bias_gelu_norm, LN first": lambda *a: bias_gelu_norm_case(*a, norm_first=True),
    "masked_mean": masked_mean_case,
    "adamw": adamw_case,
}


def fitting(name: str, config: EnergyConfig, dtype: mx.Dtype, most: int) -> tuple[int, Case]:
    """The case at the preset's batch, or at the largest half, quarter, ... of it whose arrays are within `most` bytes."""
    batch = config.batch_size
    case = CASES[name](config, batch, dtype)
    while sum(array.nbytes for array in case.arrays) > most and batch > 1:
        batch = -(-batch // 2)
        case = CASES[name](config, batch, dtype)
    return batch, case


# -- counting ----------------------------------------------------------------------------------------------------------


def leaves(tree: Any) -> list[mx.array]:
    return [leaf for branch in tree for leaf in leaves(branch)] if isinstance(tree, (list, tuple)) else [tree]


def floating(arrays: Sequence[mx.array]) -> list[mx.array]:
    return [array for array in arrays if mx.issubdtype(array.dtype, mx.floating)]


def both(case: Case, kernels: bool) -> Function:
    """Outputs and gradients as one function of the arrays and the outputs' gradients."""

    def run(*given: mx.array) -> list[mx.array]:
        arrays, cotangents = list(given[: len(case.arrays)]), list(given[len(case.arrays) :])
        fixed = arrays[case.floats :]

        def differentiable(*floats: mx.array) -> list[mx.array]:
            return floating(leaves(case.function(kernels, *floats, *fixed)))

        outputs, gradients = mx.vjp(differentiable, arrays[: case.floats], cotangents)
        return [*outputs, *gradients]

    return run


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

    def build(*_: Any) -> Function:
        def run(**call: Any) -> list[mx.array]:
            outputs = [mx.zeros(*output) for output in zip(call["output_shapes"], call["output_dtypes"], strict=True)]
            written = sum(output.nbytes for output in outputs)
            filled = call["init_value"] is not None
            cost.bytes += sum(array.nbytes for array in call["inputs"]) + written * (2 if filled else 1)
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
    described: list[mx.array] = []

    def forward(*arrays: mx.array) -> list[mx.array]:
        described[:] = leaves(case.function(False, *arrays))
        return described

    plain = count_graph(forward, case.arrays, set())
    outputs = [mx.zeros(array.shape, array.dtype) for array in described]
    read, written = (sum(array.nbytes for array in arrays) for arrays in (case.arrays, outputs))
    kernel_cost = count_kernel(case, False)
    counted = {"forward": row(read + written, plain, kernel_cost)}
    if case.floats:
        cotangents = floating(outputs)
        gradients = sum(array.nbytes for array in case.arrays[: case.floats])
        needed = read - sum(case.arrays[index].nbytes for index in case.unread)
        needed += sum(x.nbytes for x in cotangents) - sum(outputs[index].nbytes for index in case.constant)
        plain = count_graph(both(case, False), [*case.arrays, *cotangents], set())
        counted["both"] = row(read + written + needed + gradients, plain, count_kernel(case, True))
    return counted


def row(must: int, plain: Cost, own: Cost) -> dict[str, int]:
    return {
        "must_bytes": must, "plain_bytes": plain.bytes, "kernel_bytes": own.bytes,
        "plain_launches": plain.launches, "kernel_launches": own.launches, "launches_saved": plain.launches - own.launches,
    }  # fmt: skip


# -- timing ------------------------------------------------------------------------------------------------------------


def seconds(function: Function, arrays: Sequence[mx.array], repeats: int, most: int) -> float:
    """Median time of one call. `most`: bytes that the results of the calls of one evaluation may have."""
    results = leaves(function(*arrays))
    mx.eval(results)
    calls = max(1, min(100, most // max(1, sum(result.nbytes for result in results))))
    del results
    times = []
    for turn in range(repeats + 2):
        start = time.perf_counter()
        mx.eval([function(*arrays) for _ in range(calls)])
        mx.synchronize()
        if turn >= 2:  # the first two warm up
            times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def copy_bandwidth(repeats: int) -> float:
    """Bytes a second, read and written, of x + 1 over 1 GB."""
    x = mx.zeros((2**28,))
    mx.eval(x)
    return 2 * x.nbytes / seconds(lambda y: y + 1.0, [x], repeats, 4 * 2**30)


def measure(case: Case, counted: dict[str, dict[str, Any]], bandwidth: float, options: argparse.Namespace) -> None:
    """Add times to `counted`."""
    most = int(options.memory * 2**30)
    outputs = floating(leaves(case.function(False, *case.arrays)))
    cotangents = [mx.random.normal(output.shape).astype(output.dtype) for output in outputs]
    mx.eval(case.arrays, cotangents)
    del outputs

    def forward(kernels: bool) -> Function:
        return lambda *arrays: case.function(kernels, *arrays)

    for direction, figures in counted.items():
        arrays = case.arrays if direction == "forward" else [*case.arrays, *cotangents]
        make = forward if direction == "forward" else lambda kernels: both(case, kernels)
        figures["plain_seconds"] = seconds(make(False), arrays, options.repeats, most)
        if options.compiled:
            figures["compiled_seconds"] = seconds(mx.compile(make(False)), arrays, options.repeats, most)
        figures["kernel_seconds"] = seconds(make(True), arrays, options.repeats, most)
        figures["bandwidth_share"] = figures["must_bytes"] / figures["kernel_seconds"] / bandwidth


# -- the table ---------------------------------------------------------------------------------------------------------


def line(cells: Sequence[str]) -> str:
    widths = [28, 12, 10, 8, 10, 10, 10, 7, 7, 9, 9, 9, 7, 6]
    pairs = zip(cells, widths, strict=False)
    return "".join(cell.ljust(width) if i in (0, 1, 3) else cell.rjust(width) + " " for i, (cell, width) in enumerate(pairs))


HEAD = ["op", "preset", "size", "way", "must", "plain", "kernel", "plain", "kernel", "plain ms", "compiled", "kernel", "gain", "share"]


def formatted(entry: dict[str, Any]) -> str:
    megabytes = [f"{entry[f'{name}_bytes'] / 1e6:.3f}" for name in ("must", "plain", "kernel")]
    launches = [str(entry[f"{name}_launches"]) for name in ("plain", "kernel")]
    cells = [entry["op"], entry["preset"], entry["size"], entry["direction"], *megabytes, *launches]
    if "kernel_seconds" in entry:
        times = [entry.get(f"{name}_seconds") for name in ("plain", "compiled", "kernel")]
        best = min(time for time in times[:2] if time)
        cells += ["" if time is None else f"{1e3 * time:.4f}" for time in times]
        cells += [f"{best / entry['kernel_seconds']:.2f}", f"{entry['bandwidth_share']:.2f}"]
    return line(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=CASES, default=list(CASES), metavar="OP", help="default: all")
    parser.add_argument("--presets", nargs="+", default=["debug", "experiment", "optimized"], metavar="PRESET")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of activations")
    parser.add_argument("--repeats", type=int, default=9, help="evaluations (default: 9)")
    parser.add_argument("--memory", type=float, default=2.0, help="GB of inputs at most (default: 2)")
    parser.add_argument("--compiled", action="store_true", help="time the plain graph under mx.compile too")
    parser.add_argument("--count", action="store_true", help="count only, on a GPU too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there as well")
    options = parser.parse_args()
    dtype = getattr(mx, options.dtype)
    timed = mx.default_device().type == mx.gpu and not options.count
    bandwidth = copy_bandwidth(options.repeats) if timed else None
    device = str(mx.device_info().get("device_name", mx.default_device())) if timed else "counted only"
    if bandwidth:
        print(f"{device}: copies at {bandwidth / 1e9:.0f} GB/s; activations {options.dtype}")
    print(line(["", "", "", "", "MB", "MB", "MB", "launch", "launch"]), line(HEAD), sep="\n")
    mx.random.seed(0)
    table = []
    for name in options.ops:
        for preset in options.presets:
            batch, case = fitting(name, EnergyConfig.preset(preset), dtype, int(options.memory * 2**30))
            counted: dict[str, dict[str, Any]] = count(case)
            if bandwidth:
                measure(case, counted, bandwidth, options)
            for direction, figures in counted.items():
                shape = "x".join(map(str, case.arrays[0].shape))
                head = {"op": name, "preset": preset, "batch": batch, "size": shape, "direction": direction}
                table.append({**head, **figures})
                print(formatted(table[-1]), flush=True)
            mx.clear_cache()
    if options.json:
        result = {"device": device, "dtype": options.dtype, "copy_bytes_per_second": bandwidth, "table": table}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
