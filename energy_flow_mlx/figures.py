"""Figures in files: drawn without a window, whatever plotting backend the environment or a notebook names."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import write_aside

ENDINGS = (".png", ".svg", ".pdf")
# Colours that stay apart for colour-blind readers (Okabe and Ito, 2008).
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#777777"


@contextlib.contextmanager
def figure_file(path: Path, size: tuple[float, float], style: Any, dpi: float = 150) -> Iterator[Any]:
    """A matplotlib Figure to draw into; at the end it is written to `path`, aside and renamed, in the format of its ending.

    Args:
        size: width and height in inches.
        style: matplotlib's rcParams while it is drawn.

    Raises:
        OSError: the file cannot be written.
    """
    import_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        write_aside(path, lambda aside: figure.savefig(aside, dpi=dpi, format=path.suffix[1:]))


def import_matplotlib() -> None:
    """`import matplotlib`, which fails if MPLBACKEND names a backend that is not installed: a notebook's in a process of its own."""
    if "matplotlib" in sys.modules:
        return
    chosen = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
    if chosen is not None:
        with contextlib.suppress(ValueError):  # for pyplot, should it be used later
            matplotlib.rcParams["backend"] = chosen
