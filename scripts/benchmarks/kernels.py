"""The custom kernels beside MLX's own graph: `python scripts/benchmarks/kernels.py [--json FILE]`.

For each op, preset and direction:

    must      MB that have to move: each input read once, each output written once (backward: the outputs' gradients and those inputs read
              that the derivative depends on, the gradients of the inputs written)
    plain     MB that the plain graph moves, and its kernel launches. Formula: the graph is exported; every primitive that is not a view
              reads each input and writes each output once and is one launch. A view is free, what is read through a broadcast counts
              once, and a gather reads what it returns. `mx.compile` merges some of these launches, so this is the eager graph. On a
              machine without a GPU MLX makes mx.fast.layer_norm of many primitives, and so they are counted; on one with a GPU it is one.
    kernel    the same of the graph with the custom kernel; of an input called table as much is read as is returned
    ms        on a GPU: plain graph and kernel. Medians over --repeats evaluations of many independent calls each, so that the time of
              one launch does not count. Python names every operation of every call, which for small arrays is most of the time; with
              --traced each call replays a trace, as a training step does. "both" is forward and backward.
    share     must / ms, as a share of the bandwidth of a large copy that the same run measures. Inputs that fit into the cache can be over 1.

Without a GPU only the counted columns are printed. Random data; each preset's largest batch whose inputs fit into --memory GB.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from counted_graph import Function, count  # first: it stands in for mx.custom_function before the ops are imported

from energy_flow_mlx import EnergyConfig
from energy_flow_mlx.doctor.cases import CASES, Case, both, fitting, floating, leaves
from energy_flow_mlx.training.compilation import compiled


def seconds(function: Function, arrays: Sequence[mx.array], repeats: int, most: int, traced: bool = False) -> float:
    """Median time of one call. `most`: bytes that the results of the calls of one evaluation may have."""
    if traced:
        function = compiled(function, inputs=None, outputs=None)
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
        figures["plain_seconds"] = seconds(make(False), arrays, options.repeats, most, options.traced)
        figures["kernel_seconds"] = seconds(make(True), arrays, options.repeats, most, options.traced)
        figures["bandwidth_share"] = figures["must_bytes"] / figures["kernel_seconds"] / bandwidth


def line(cells: Sequence[str]) -> str:
    widths = [28, 12, 10, 8, 10, 10, 10, 7, 7, 9, 9, 7, 6]
    pairs = zip(cells, widths, strict=False)
    return "".join(cell.ljust(width) if i in (0, 1, 3) else cell.rjust(width) + " " for i, (cell, width) in enumerate(pairs))


HEAD = ["op", "preset", "size", "way", "must", "plain", "kernel", "plain", "kernel", "plain ms", "kernel", "gain", "share"]


def formatted(entry: dict[str, Any]) -> str:
    megabytes = [f"{entry[f'{name}_bytes'] / 1e6:.3f}" for name in ("must", "plain", "kernel")]
    launches = [str(entry[f"{name}_launches"]) for name in ("plain", "kernel")]
    cells = [entry["op"], entry["preset"], entry["size"], entry["direction"], *megabytes, *launches]
    if "kernel_seconds" in entry:
        cells += [f"{1e3 * entry[f'{name}_seconds']:.4f}" for name in ("plain", "kernel")]
        cells += [f"{entry['plain_seconds'] / entry['kernel_seconds']:.2f}", f"{entry['bandwidth_share']:.2f}"]
    return line(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=CASES, default=list(CASES), metavar="OP", help="default: all")
    parser.add_argument("--presets", nargs="+", default=["debug", "experiment", "optimized"], metavar="PRESET")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of activations")
    parser.add_argument("--repeats", type=int, default=9, help="evaluations (default: 9)")
    parser.add_argument("--memory", type=float, default=2.0, help="GB of inputs at most (default: 2)")
    parser.add_argument("--traced", action="store_true", help="time replayed traces")
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
