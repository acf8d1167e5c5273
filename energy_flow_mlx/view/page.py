"""One page without a network: flows in 3-D, played step by step, and the two output planes that fill up as they arrive.

page.html draws on canvases by itself. Built on plotly's animation frames it took half a second and more to draw one at 100x100 cells.
"""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from ..models.trace import Trace
from ..plot.animation import collected
from ..plot.flows import drawn, limits
from ..plot.styling import ENERGY_COLOURS
from ..strict_json import to_json

TEMPLATE = Path(__file__).with_name("page.html")
FULL, NONE = 32767, -32768  # numbers from -1 to 1 are sent in 16 bits; NONE: a cell in which no flow has arrived
PLANES = (-1, 1)


def page(traces: Mapping[str, Trace], *, most: int) -> str:
    """The page of the first sample of one or two traces, by the names of their runs.

    Args:
        most: flows of each that are drawn; the planes are those of all flows.
    """
    first = next(iter(traces.values()))
    data = {
        "text": first.texts[0] if first.texts else "flows",
        "steps": max(trace.steps for trace in traces.values()),
        "colours": [[round(255 * channel) for channel in to_rgb(colour)] for colour in ENERGY_COLOURS],
        "runs": [_run(name, trace, most) for name, trace in traces.items()],
    }
    text = to_json(data, indent=None).replace("<", "\\u003c")  # so that no text can end the script element
    return TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text)


def _run(name: str, trace: Trace, most: int) -> dict[str, Any]:
    """What page.html reads of one run."""
    flows, there = drawn(trace, 0, most), trace.exists[:, 0]
    _, largest = limits(trace.energy[:, 0][there])
    states = np.where(trace.arrived[:, 0], 2, np.where(trace.active[:, 0], 1, 3)) * there
    return {
        "name": name,
        "said": _said(trace, len(flows)),
        "width": trace.width,
        "height": trace.height,
        "steps": trace.steps,
        "most": largest,
        "slot": _packed(flows.astype(np.int32)),
        "position": _packed(_short(trace.position[:, 0, flows])),
        "energy": _packed(_short(trace.energy[:, 0, flows] / largest)),
        "state": _packed(states[:, flows].astype(np.uint8)),
        "born": _packed(trace.born[0, flows]),
        "parent": _packed(trace.parent[0, flows]),
        "planes": _packed(np.stack([_plane(trace, step, plane) for step in range(trace.steps + 1) for plane in PLANES])),
    }


def _said(trace: Trace, shown: int) -> str:
    there, arrived = int(trace.exists[-1, 0].sum()), int(trace.arrived[-1, 0].sum())
    drawn = f"all {there:,} flows are drawn" if shown == there else f"{shown:,} of {there:,} flows are drawn; the planes show all"
    return f"{trace.width} x {trace.height} cells, {trace.depth + 1} planes; {arrived / max(there, 1):.1%} of the flows arrive; {drawn}"


def _plane(trace: Trace, step: int, plane: int) -> NDArray[np.int16]:
    """Energies [S] that flows have left on a plane by a step; at the last one also those that are projected."""
    counted = trace.arrived[step, 0] | (step == trace.steps)
    here = counted & (np.where(trace.position[step, 0, :, 2] > 0, 1, -1) == plane)
    values = collected(trace, 0, here) / limits(trace.surface[0])[1]
    return np.where(np.isnan(values), np.int16(NONE), _short(np.nan_to_num(values)))


def _short(values: NDArray[Any]) -> NDArray[np.int16]:
    return np.rint(np.clip(values, -1, 1) * FULL).astype(np.int16)


def _packed(values: NDArray[Any]) -> str:
    return b64encode(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()).decode()
