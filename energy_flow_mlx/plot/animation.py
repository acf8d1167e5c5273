"""A trace as an animation: flows in the lattice, and the surface that fills up as they arrive."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..figures import GREY
from ..files import write_aside
from ..flows import Flows
from .flows import MOST, drawn, limits, prepare_3d
from .styling import ENERGY, style

HOLD = 15  # frames for which the end stays
WRITERS = {".gif": "pillow", ".mp4": "ffmpeg", ".webm": "ffmpeg", ".html": "html"}


class FlowAnimation(FuncAnimation):
    """An animation that shows itself in a notebook: as a video where ffmpeg is, else as pictures with a player."""

    def _repr_html_(self) -> str:
        shown: str = self.to_html5_video() if shutil.which("ffmpeg") else self.to_jshtml()
        return shown


def animate(trace: Flows, *, sample: int = 0, frames_a_step: int | None = None, most: int = MOST, title: str = "") -> FlowAnimation:
    """The flows of one sample in the lattice, beside the surface of those that have arrived.

    Args:
        frames_a_step: flows move in a line between steps; None: as many as make 40 frames, and at least 3.
        most: flows that are drawn; the surface is of all.
    """
    flows, last = drawn(trace, sample, most), len(trace.position) - 1
    each = frames_a_step or max(3, 40 // last)
    with style():
        figure = Figure(figsize=(6.2, 3.0), dpi=100)
        figure.set_layout_engine("none")
        space = figure.add_axes((-0.02, 0.0, 0.66, 1.0), projection="3d")
        plane = figure.add_axes((0.68, 0.14, 0.30, 0.62))
        draw = _painter(trace, sample, flows, space, plane)
        figure.text(0.02, 0.93, title, fontsize=9)
        animation = FlowAnimation(
            figure, lambda frame: draw(min(frame / each, last)), frames=last * each + HOLD, interval=1000 / 15
        )
    return animation


def save_animation(animation: FuncAnimation, path: str | os.PathLike[str], *, fps: int = 15) -> None:
    """Write an animation aside and rename it: .gif, .html (pictures with a player), and with ffmpeg .mp4 or .webm.

    Raises:
        ValueError: another extension, or ffmpeg is not there.
    """
    path = Path(path)
    writer = WRITERS.get(path.suffix)
    if writer is None:
        raise ValueError(f"{path}: {path.suffix or 'no'} extension came, accepted are {', '.join(WRITERS)}")
    if writer == "ffmpeg" and shutil.which("ffmpeg") is None:
        raise ValueError(f"{path}: ffmpeg, which writes {path.suffix}, is not installed; .gif and .html need none")
    if writer == "html":
        write_aside(path, lambda aside: aside.write_text(animation.to_jshtml(fps=fps), encoding="utf-8"))
    else:
        write_aside(path, lambda aside: animation.save(aside, writer=writer, fps=fps))


def _painter(trace: Flows, sample: int, flows: NDArray[np.intp], space: Any, plane: Any) -> Callable[[float], list[Any]]:
    """A function that draws the state at a time between two steps."""
    low, high = limits(trace.energy[:, sample][trace.exists[:, sample]])
    prepare_3d(space)
    dots = space.scatter([], [], [], c=[], cmap=ENERGY, vmin=low, vmax=high, s=max(4, 160 / len(flows) ** 0.5), depthshade=False, linewidths=0)
    image = plane.imshow(np.zeros((trace.height, trace.width)), cmap=ENERGY, interpolation="nearest")
    image.set_clim(*limits(trace.surface[sample]))
    plane.set(xticks=(), yticks=())
    plane.grid(False)
    for spine in plane.spines.values():
        spine.set(visible=True, color=GREY)
    caption = plane.set_title("")

    last = len(trace.position) - 1

    def draw(time: float) -> list[Any]:
        before, after = int(time), min(int(time) + 1, last)
        part = time - before
        there = flows[trace.exists[before, sample, flows]]
        position = (1 - part) * trace.position[before, sample, there] + part * trace.position[after, sample, there]
        dots._offsets3d = position[:, 2], position[:, 0], position[:, 1]
        dots.set_array((1 - part) * trace.energy[before, sample, there] + part * trace.energy[after, sample, there])
        arrived = trace.arrived[before, sample] | (before == last)  # at the end also those that are projected
        image.set_data(collected(trace, sample, arrived).reshape(trace.height, trace.width))
        share = trace.arrived[before, sample].sum() / max(trace.exists[before, sample].sum(), 1)
        caption.set_text(f"step {before}: {share:.0%} arrived")
        space.view_init(elev=18, azim=-75 + 14 * time / last)
        return [dots, image, caption]

    return draw


def collected(trace: Flows, sample: int, flows: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The part of the surface [S] that some flows [C] bool leave; NaN where they leave nothing."""
    surface = np.full(trace.width * trace.height, np.nan, dtype=np.float32)
    cell, weight = trace.cell[sample], trace.weight[sample]
    counted = (cell >= 0) & (weight > 0) & flows[:, None]
    surface[cell[counted]] = 0
    np.add.at(surface, cell[counted], (weight * trace.energy[-1, sample][:, None])[counted])
    return surface
