"""A/B of the GRU in its matrix form (GRUCell) and MLX's nn.GRU, on the same weights: `python scripts/benchmarks/gru.py`.

Times one step of N flows, forward and forward + backward, in turns in one process; prints medians and the largest difference.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from energy_flow_mlx import GRUCell


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    mx.eval(function())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=3200, help="N (default: the debug preset's 3200)")
    parser.add_argument("--hidden", type=int, default=256, help="Hd (default: 256)")
    parser.add_argument("--inputs", type=int, default=65, help="input size (default: 65)")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()

    mx.random.seed(0)
    cell, layer = GRUCell(options.inputs, options.hidden), nn.GRU(options.inputs, options.hidden)
    layer.update(cell.parameters())
    x = mx.random.normal((options.flows, options.inputs))
    hidden = mx.random.normal((options.flows, options.hidden))
    steps = {"matrix (GRUCell)": lambda: cell(x, hidden), "nn.GRU": lambda: layer(x[:, None], hidden)[:, 0]}
    modules: dict[str, nn.Module] = {"matrix (GRUCell)": cell, "nn.GRU": layer}
    difference = mx.max(mx.abs(steps["matrix (GRUCell)"]() - steps["nn.GRU"]())).item()

    forward: dict[str, list[float]] = {name: [] for name in steps}
    both: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.repeats + 2):
        for name, step in steps.items():
            gradient = nn.value_and_grad(modules[name], lambda _, step=step: mx.sum(step()))
            times = seconds(step), seconds(lambda gradient=gradient, name=name: gradient(modules[name]))
            if turn >= 2:  # the first two warm up
                forward[name].append(times[0])
                both[name].append(times[1])
    print(f"{mx.default_device()}, N = {options.flows}, Hd = {options.hidden}; largest difference {difference:.1e}")
    for name in steps:
        print(
            f"{name:18} forward {1e3 * statistics.median(forward[name]):8.1f} ms   "
            f"forward + backward {1e3 * statistics.median(both[name]):8.1f} ms"
        )


if __name__ == "__main__":
    main()
