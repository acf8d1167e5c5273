"""Pictures of flows, texts and runs, with matplotlib. Each function draws on the Axes it is given, or on a new one, and returns it."""

# ruff: noqa: E402
from ..figures import import_matplotlib

import_matplotlib()  # before anything below imports it

from .animation import animate, save_animation
from .curves import curves, scores, training
from .flows import arrivals, births, energies, landings, lattice, overview, side, surfaces
from .styling import STYLE, style
from .texts import attention, embedding_map

__all__ = [
    "STYLE",
    "animate",
    "arrivals",
    "attention",
    "births",
    "curves",
    "embedding_map",
    "energies",
    "landings",
    "lattice",
    "overview",
    "save_animation",
    "scores",
    "side",
    "style",
    "surfaces",
    "training",
]
