"""Colours, and the Axes that a picture is drawn on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.image import AxesImage

from ..figures import BLUE

RED = "#D55E00"
ENERGY_COLOURS = (BLUE, "#8FB9D6", "#D4D4D4", "#EBB08A", RED)  # from negative over 0 to positive
ENERGY = LinearSegmentedColormap.from_list("energy", list(ENERGY_COLOURS))
WIDTH = 3.3  # of a column, in inches

STYLE = Path(__file__).with_name("energy_flow.mplstyle")


def style() -> AbstractContextManager[None]:
    """The settings of energy_flow.mplstyle, for a `with` statement. Neither the backend nor the caller's settings change."""
    context: AbstractContextManager[None] = matplotlib.style.context(STYLE)
    return context


@contextmanager
def canvas(ax: Axes | None, *, size: tuple[float, float] | None = None, projection: str | None = None) -> Iterator[Any]:
    """`ax`, or that of a new figure of pyplot, which notebooks show; in the package's style while the `with` statement lasts.

    Raises:
        ValueError: `projection` is "3d" and `ax` is flat.
    """
    if ax is not None and projection == "3d" and ax.name != "3d":
        raise ValueError("ax: a flat Axes came, accepted is one made with projection='3d'")
    if ax is not None:
        with style():
            yield ax
        return
    import matplotlib.pyplot as plt

    plt.draw_if_interactive()  # loads a notebook's backend, whose settings the end of the style would take back
    with style():
        yield plt.figure(figsize=size).add_subplot(projection=projection)


def colour_bar(ax: Axes, image: AxesImage | Any, label: str) -> None:
    """A thin colour bar at the right of `ax`."""
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.85, aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label(label)
