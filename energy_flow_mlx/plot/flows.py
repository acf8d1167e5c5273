"""Pictures of a trace: where flows are, where they land, and what becomes of their energy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Line3DCollection
from numpy.typing import NDArray

from ..figures import BLUE, GREEN, GREY, ORANGE, PINK
from ..flows import Flows
from .styling import ENERGY, RED, canvas, colour_bar, style

MOST = 600  # flows drawn as lines


def surfaces(trace: Flows, *, sample: int = 0, target: Any = None, ax: Axes | None = None) -> Axes:
    """The surface that flows start from, the one that they leave, and that of the target, beside each other; each has its own scale.

    target: [S] or [H, W], such as `model.map_to_surface(target_embedding)[0]`.
    """
    given = {"input": trace.start[sample], "flow": trace.surface[sample]} | ({} if target is None else {"target": np.array(target)})
    width, height = trace.width, trace.height
    with canvas(ax, size=(3.3, 3.3 / len(given) + 0.15)) as ax:
        for place, (name, surface) in enumerate(given.items()):
            left, most = place * 1.12 * width, float(np.abs(surface).max()) or 1.0
            extent = (left, left + width, height, 0)
            ax.imshow(surface.reshape(height, width), cmap=ENERGY, vmin=-most, vmax=most, extent=extent, interpolation="nearest")
            ax.text(left, -0.03 * height, f"{name}, ±{most:.2g}", va="bottom", fontsize=7.5)
        ax.set(xlim=(0, left + width), ylim=(height, 0), aspect="equal")
        ax.set_axis_off()
    return ax


def lattice(trace: Flows, *, sample: int = 0, most: int = MOST, ax: Axes | None = None) -> Axes:
    """Paths of flows through the lattice in 3-D, coloured by energy: from the centre plane to the planes z = -1 and z = +1."""
    with canvas(ax, size=(3.3, 2.3), projection="3d") as space:
        prepare_3d(space)
        pieces, energies = _pieces(trace, sample, most)
        lines = Line3DCollection(pieces[..., [2, 0, 1]], cmap=ENERGY, linewidths=0.6)
        lines.set_array(energies)
        lines.set_clim(*limits(energies))
        space.add_collection3d(lines, autolim=False)
        colour_bar(space, lines, "energy")
        drawn: Axes = space
    return drawn


def side(trace: Flows, *, sample: int = 0, axis: str = "x", most: int = MOST, ax: Axes | None = None) -> Axes:
    """Paths of flows from the side: z across, x or y upwards, coloured by energy. Small squares: where flows started."""
    if axis not in ("x", "y"):
        raise ValueError(f"axis={axis!r} came, accepted are 'x' and 'y'")
    across = "xy".index(axis)
    with canvas(ax) as ax:
        pieces, energies = _pieces(trace, sample, most)
        lines = LineCollection(list(pieces[..., [2, across]]), cmap=ENERGY, linewidths=0.8)
        lines.set_array(energies)
        lines.set_clim(*limits(energies))
        ax.add_collection(lines, autolim=False)
        first = trace.position[0, sample, trace.born[sample] == 0]
        ax.scatter(first[:, 2], first[:, across], s=3, marker="s", color=GREY, linewidths=0, zorder=3)
        for plane in (-1, 1):
            ax.axvline(plane, color="black", lw=1.2)
        ax.set(xlim=(-1.05, 1.05), ylim=(-1.08, 1.08), xlabel="z", ylabel=axis)
        colour_bar(ax, lines, "energy")
    return ax


def landings(trace: Flows, *, sample: int | None = None, ax: Axes | None = None) -> Axes:
    """How many flows are collected in each cell, as a mean over the samples, or of one sample. The title counts collisions: flows
    beyond the first in a cell."""
    chosen = slice(None) if sample is None else slice(sample, sample + 1)
    collected = np.any(trace.cell[chosen] >= 0, axis=-1)
    end = trace.position[-1, chosen]
    x, y = (np.rint((end[..., axis] + 1) / 2 * (size - 1)).astype(int) for axis, size in enumerate((trace.width, trace.height)))
    count: NDArray[np.float64] = np.zeros((len(collected), trace.height, trace.width))
    rows = np.nonzero(collected)[0]
    np.add.at(count, (rows, y[collected], x[collected]), 1)
    collisions = np.maximum(count - 1, 0).sum(axis=(1, 2)).mean()
    with canvas(ax, size=(3.3, 2.6)) as ax:
        mean = count.mean(axis=0)
        image = ax.imshow(mean, cmap="viridis", vmin=0, vmax=max(2.0, mean.max()), interpolation="nearest")
        ax.set(xlabel="x", ylabel="y", title=f"{rows.size / len(count):.0f} flows, {collisions:.0f} collisions, {(mean == 0).sum()} cells empty")
        ax.grid(False)
        colour_bar(ax, image, "flows a cell")
    return ax


def energies(trace: Flows, *, sample: int | None = None, most: int = MOST, ax: Axes | None = None) -> Axes:
    """The energy of flows over their life, a thin line each until it arrives; thick: the mean size |energy| of those still moving or
    arrived."""
    chosen = range(trace.born.shape[0]) if sample is None else [sample]
    steps = np.arange(len(trace.position))
    with canvas(ax) as ax:
        flows = [(one, flow) for one in chosen for flow in drawn(trace, one, max(1, most // len(chosen)))]
        lines = [np.stack([steps, trace.energy[:, one, flow]], axis=1)[slice(*_life(trace, one, flow))] for one, flow in flows]
        colours = [RED if line[0, 1] > 0 else BLUE for line in lines]
        ax.add_collection(LineCollection(lines, colors=colours, linewidths=0.4, alpha=0.35))
        there = trace.exists[:, chosen]
        size = np.sum(np.abs(trace.energy[:, chosen]) * there, axis=(1, 2)) / np.maximum(there.sum(axis=(1, 2)), 1)
        ax.plot(steps, size, color="black", label="mean |energy|")
        ax.autoscale_view()
        ax.set(xlabel="step", ylabel="energy", xlim=(0, steps[-1]), xticks=_whole(steps))
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98))
    return ax


def arrivals(trace: Flows, *, sample: int | None = None, ax: Axes | None = None) -> Axes:
    """The share of flows that have arrived on each plane after each step, that are still moving, and that were dropped."""
    chosen = slice(None) if sample is None else slice(sample, sample + 1)
    there, arrived, active = (array[:, chosen] for array in (trace.exists, trace.arrived, trace.active))
    above = trace.position[:, chosen, :, 2] > 0
    states = {"on z = -1": arrived & ~above, "on z = +1": arrived & above, "moving": active, "dropped": ~arrived & ~active}
    shares = [100 * np.sum(state & there, axis=(1, 2)) / np.maximum(there.sum(axis=(1, 2)), 1) for state in states.values()]
    steps = np.arange(len(trace.position))
    with canvas(ax) as ax:
        shown = [(share, name, colour) for share, name, colour in zip(shares, states, (BLUE, RED, GREY, PINK), strict=True) if share.any()]
        bottom = np.zeros(len(steps))
        for share, name, colour in shown:
            ax.bar(steps, share, bottom=bottom, width=0.85, color=colour, alpha=0.35 if name == "moving" else 1.0, label=name)
            bottom = bottom + share
        ax.set(xlabel="step", ylabel="flows, %", ylim=(0, 100), xticks=_whole(steps))
        ax.grid(axis="x", visible=False)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(shown))
    return ax


def births(trace: Flows, *, sample: int = 0, most: int = 60, ax: Axes | None = None) -> Axes:
    """Families of flows as a tree: a line for each flow from its birth until it arrives (dot) or the run ends; first families, up to
    `most` flows."""
    order, families = _families(trace, sample, most)
    rows, places = np.arange(len(order)), {flow: place for place, flow in enumerate(order)}
    lives = np.array([_life(trace, sample, flow) for flow in order]).reshape(-1, 2)
    parent, arrived = trace.parent[sample, order], trace.arrived[-1, sample, order]
    begin, end, child = lives[:, 0], lives[:, 1] - 1, parent >= 0
    above = np.array([places[flow] for flow in parent[child]], dtype=int)
    with canvas(ax, size=(3.3, 2.8)) as ax:
        ax.hlines(rows, begin, end, colors=np.where(child, GREEN, BLUE).tolist(), lw=0.9)
        ax.vlines(begin[child], above, rows[child], colors=GREY, lw=0.5)
        ax.plot(begin[child], rows[child], ".", color=GREEN, ms=2)
        ax.plot(end[arrived], rows[arrived], ".", color=ORANGE, ms=4)
        born = int(np.sum(trace.parent[sample] >= 0))
        steps = np.arange(len(trace.position))
        ax.set(xlabel="step", ylabel="flow", yticks=[], xlim=(-0.1, steps[-1] + 0.1), xticks=_whole(steps))
        ax.set_title(f"{born} children in {families} families" + (f"; {len(order)} flows shown" if order else ""))
        ax.grid(axis="y", visible=False)
    return ax


def overview(trace: Flows, *, sample: int = 0) -> Figure:
    """Paths from the side, surfaces and arrivals of one sample, as one figure that pyplot does not know of."""
    with style():
        figure = Figure(figsize=(7.6, 2.1))
        axes = figure.subplots(1, 3, width_ratios=[1.3, 1.5, 1])
        side(trace, sample=sample, ax=axes[0])
        surfaces(trace, sample=sample, ax=axes[1])
        arrivals(trace, sample=sample, ax=axes[2])
    return figure


def prepare_3d(ax: Any) -> None:
    """An empty lattice: z from left to right, y downwards as in surfaces, the two output planes and the centre plane as frames."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    for z in (-1, 0, 1):
        ax.plot(np.full(5, z), corners[:, 0], corners[:, 1], color="black" if z else GREY, lw=0.8 if z else 0.5)
    for z, name in ((-1, "z = -1"), (0, "start"), (1, "z = +1")):
        ax.text(z, -1, 1.35, name, fontsize=7, ha="center")
    ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(1, -1), xticks=(), yticks=(), zticks=())
    for each in (ax.xaxis, ax.yaxis, ax.zaxis):
        each.pane.set_visible(False)
        each.line.set_visible(False)
    ax.grid(False)
    ax.set_box_aspect((1.5, 1, 1), zoom=1.0)
    ax.view_init(elev=18, azim=-68)


def drawn(trace: Flows, sample: int, most: int) -> NDArray[np.intp]:
    """Flows that are drawn as lines: all, or `most` of them evenly."""
    flows = np.flatnonzero(trace.born[sample] >= 0)
    return flows if len(flows) <= most else flows[np.linspace(0, len(flows) - 1, most).astype(int)]


def _life(trace: Flows, sample: int, flow: int) -> tuple[int, int]:
    """Rows of the trace in which a flow lives: from its birth to its arrival or end, inclusive, as a half-open range."""
    born = int(trace.born[sample, flow])
    return born, born + int(np.sum(trace.active[born:-1, sample, flow])) + 1


def _pieces(trace: Flows, sample: int, most: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Moves [P, 2, 3] of the flows that are drawn, and the energies [P] after them."""
    flows = drawn(trace, sample, most)
    moved = (trace.active[:-1, sample] & trace.exists[:-1, sample])[:, flows]
    position, energy = trace.position[:, sample, flows], trace.energy[1:, sample, flows]
    return np.stack([position[:-1], position[1:]], axis=2)[moved], energy[moved]


def limits(energies: NDArray[np.float32]) -> tuple[float, float]:
    """The ends of a colour scale around 0."""
    most = float(np.abs(energies).max(initial=1e-6))
    return -most, most


def _whole(steps: NDArray[np.int_]) -> NDArray[np.int_]:
    """Ticks at whole steps, at most nine."""
    return steps[:: -(-len(steps) // 9)]


def _families(trace: Flows, sample: int, most: int) -> tuple[list[int], int]:
    """The first families up to `most` flows, each flow followed by its descendants; and how many families there are."""
    children: dict[int, list[int]] = {}
    for child, parent in enumerate(trace.parent[sample]):
        if parent >= 0:
            children.setdefault(int(parent), []).append(child)

    def walk(flow: int) -> Iterator[int]:
        yield flow
        for child in children.get(flow, []):
            yield from walk(child)

    heads = [flow for flow in sorted(children) if trace.parent[sample, flow] < 0]
    order: list[int] = []
    for head in heads:
        family = list(walk(head))
        if order and len(order) + len(family) > most:
            break
        order += family
    return order, len(heads)
