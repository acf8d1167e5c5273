"""Printing, saving and plotting a benchmark's results."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..figures import BLUE, ORANGE, figure_file
from ..files import write_aside
from ..strict_json import write_json
from .machines import ALUS

Results = Mapping[str, Any]
_COLOURS = {"mlx": BLUE, "torch": ORANGE}
_STYLE: dict[str, Any] = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}


def text(results: Results) -> str:
    """All results as tables."""
    parts = [_ceilings(results["ceilings"]), _rows(results["rows"])]
    if results.get("ratios"):
        parts.append(_ratios(results["ratios"]))
    if results.get("stages"):
        parts.append(_stages(results))
    if results.get("sweep"):
        parts.append(_sweep(results["sweep"]))
    if results.get("scenarios"):
        parts.append(_scenarios(results["scenarios"]))
    return "\n\n".join(part for part in parts if part)


def floors(results: Results) -> str:
    """What presets must take at least on a machine, as `benchmark.machines.floors` counts it."""
    peak = results["cores"] * ALUS * 2 * results["gigahertz"] / 1e3
    lines = [
        [f"{row['preset']}, {row['dtype']}, {row['what']}", f"{row['flops'] / 1e12:.3g}", f"{row['products'] / 1e9:.3g}", f"{row['gates'] / 1e9:.3g}",
         f"{row['fused'] / 1e9:.3g}", f"{row['ends'] / 1e9:.3g}", f"{row['launches']:,}", milliseconds(row["seconds"]),
         milliseconds(row["fused_s"]), percent(row["break_even"])]
        for row in results["rows"]
    ]  # fmt: skip
    header = ["", "TFLOP", "products GB", "gates GB", "fused GB", "ends GB", "launches", "floor ms", "fused floor ms", "break-even"]
    return f"{results['machine']}: {peak:.3g} TFLOP/s, {results['gigabytes_per_s']:g} GB/s, on paper\n" + table(header, lines)


def save(path: Path, results: Results) -> None:
    """Write the results as JSON, atomically."""
    write_aside(path, lambda aside: write_json(aside, dict(results)))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the first column aligned left and the others right."""
    widths = [max(len(row[k]) for row in (header, *rows)) for k in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def rate(value: float) -> str:
    """Four digits, without an exponent."""
    return f"{float(f'{value:.4g}'):,.0f}" if value >= 1000 else f"{value:.4g}"


def gibibytes(size: float | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _ceilings(ceilings: Results) -> str:
    products = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {name}" for name, rate in ceilings["flops"].items())
    return (
        f"{ceilings['device']}: matrix product of {ceilings['size']}² matrices {products}; "
        f"copy {ceilings['bytes_per_s'] / 1e9:.3g} GB/s"
    )


def _rows(rows: Sequence[Results]) -> str:
    header = [
        "",
        "ms",
        "pipelined",
        "samples/s",
        "flow steps/s",
        "TFLOP/s",
        "of peak",
        "peak GiB",
        "process GiB",
        "first call s",
        "n",
    ]
    lines, failures = [], []
    for row in rows:
        name = f"{row['framework']} {row['variant']}, {row['what']}"
        if "error" in row:
            failures.append(f"{name}: {row['error']}")
            continue
        lines.append(
            [name, milliseconds(row["seconds"]), milliseconds(row["pipelined_s"]), rate(row["samples_per_s"]), rate(row["flow_steps_per_s"]),
             f"{row['tflops']:.3g}", percent(row["share_of_peak"]), gibibytes(row["peak_bytes"]),
             gibibytes(row["process_peak_bytes"]), f"{row['first_call_s']:.1f}", str(len(row["times"]))]
        )  # fmt: skip
    return "\n".join([table(header, lines), *failures])


def _ratios(found: Sequence[Results]) -> str:
    lines = []
    names = {"training": "loss of the first step", "forward": "sum of the embeddings"}
    for row in found:
        kind = "memory" if row["memory_kind"] == "peak_bytes" else "process memory"
        lines.append(
            f"{row['what']}: mlx {row['mlx']} takes {row['time']:.2f} of the time of torch {row['fastest_torch']}, "
            f"{row['memory']:.2f} of its {kind} ({row['memory_to_leanest']:.2f} of that of {row['leanest_torch']}); "
            f"{names[row['what']]} {row['first_value']:.6g} and {row['first_value_torch']:.6g}"
        )
    return "\n".join(lines)


def _stages(results: Results) -> str:
    lines = []
    for row in results["stages"]:
        lines.append(
            [row["stage"], str(row["calls"]), milliseconds(row["seconds"]), f"{row['flops'] / row['seconds'] / 1e12:.3g}"
             if row["seconds"] else "", f"{row['bytes'] / row['seconds'] / 1e9:.3g}" if row["seconds"] else "",
             milliseconds(row["limit_seconds"]), percent(row["share_of_limit"])]
        )  # fmt: skip
    rule = results["why_apart"] or "all moves are one kernel, or each by itself where moves are watched or may end early"
    rows = table(["stage", "calls", "ms", "TFLOP/s", "GB/s", "limit ms", "of limit"], lines)
    return f"stages of one micro-batch\n{rows}\nin evaluation: {rule}"


def _sweep(sweep: Results) -> str:
    lines = [
        [f"{point['axis']} = {point['value']}", *(
            cell for what in ("training", "flows")
            for cell in (milliseconds(point[what]["seconds"]), f"{point[what]['peak_bytes'] / 2**20:,.0f}")
        )]
        for point in sweep["points"]
    ]  # fmt: skip
    fits = [
        [fit["axis"], *(
            f"{fit[f'{what} {quantity}']:.2f} ({fit[f'{what} {quantity}, last doubling']:.2f})"
            for what in ("training", "flows") for quantity in ("seconds", "peak_bytes")
        )]
        for fit in sweep["exponents"]
    ]  # fmt: skip
    return (
        "growth of a training step, and of only its flows (forward and backward)\n"
        + table(["", "step ms", "step MiB", "flows ms", "flows MiB"], lines)
        + "\n\nexponents p of growth ~ x^p over all points (over the last doubling)\n"
        + table(["", "step time", "step memory", "flows time", "flows memory"], fits)
    )


def _scenarios(scenarios: Sequence[Results]) -> str:
    lines = [
        [f"{scenario['scenario']}, {run['device']}", str(run["steps"]), milliseconds(run["seconds"]),
         f"{run['batch_size'] / run['seconds']:,.0f}", f"{run['peak_bytes'] / 2**20:,.0f}", f"{run['first_loss']:.4g}",
         f"{run['last_loss']:.4g}"]
        for scenario in scenarios for run in scenario["runs"]
    ]  # fmt: skip
    return table(["scenario", "steps", "ms per step", "samples/s", "peak MiB", "first loss", "last loss"], lines)


def draw(path: Path, results: Results) -> None:
    """Plot the rows' times and memory, the stages and the sweep in one figure; the extension of `path` selects its format."""
    panels = [_draw_times, _draw_memory]
    panels += [_draw_stages] if results.get("stages") else []
    panels += [_draw_sweep] if results.get("sweep") else []
    with figure_file(path, (5.5 * len(panels), 4.5), _STYLE, dpi=120) as figure:
        for panel, axis in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
            panel(axis, results)
        figure.suptitle(results["title"], x=0.01, ha="left")  # over the labels on the left its middle would not look like one


def _draw_times(axis: Any, results: Results) -> None:
    _draw_rows(axis, results, lambda row: 1e3 * row["seconds"])
    axis.set(xlabel="ms (median)", title="time of a call")


def _draw_memory(axis: Any, results: Results) -> None:
    # Torch on a CPU tells no peak of its arrays: that row has no bar.
    _draw_rows(axis, results, lambda row: (row["peak_bytes"] or 0) / 2**30)
    axis.set(xlabel="GiB", title="peak of allocated arrays", yticklabels=[])
    axis.locator_params(axis="x", nbins=5)


def _draw_rows(axis: Any, results: Results, length: Callable[[Results], float]) -> None:
    rows = [row for row in results["rows"] if "error" not in row][::-1]
    names = [f"{row['framework']} {row['variant']}, {row['what']}" for row in rows]
    axis.barh(names, [length(row) for row in rows], color=[_COLOURS[row["framework"]] for row in rows])


def _draw_stages(axis: Any, results: Results) -> None:
    rows = results["stages"][::-1]
    names = [row["stage"] for row in rows]
    axis.barh(names, [1e3 * row["seconds"] for row in rows], color=BLUE, label="measured")
    axis.barh(names, [1e3 * row["limit_seconds"] for row in rows], color=ORANGE, height=0.3, label="limit")
    axis.set(xlabel="ms in a micro-batch", title="stages and the machine's limit")
    axis.legend()


def _draw_sweep(axis: Any, results: Results) -> None:
    sweep = results["sweep"]
    for fit in sweep["exponents"]:
        along = [point for point in sweep["points"] if point["axis"] == fit["axis"]]
        axis.plot(
            [point["value"] / along[0]["value"] for point in along],
            [1e3 * point["flows"]["seconds"] for point in along],
            marker="o",
            label=f"{fit['axis']}: p = {fit['flows seconds']:.2f}",
        )
    axis.set(
        xscale="log", yscale="log", xlabel="multiple of the smallest value", ylabel="ms", title="growth of the flows"
    )
    axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axis.tick_params(which="minor", labelbottom=False, labelleft=False)
    axis.legend()
