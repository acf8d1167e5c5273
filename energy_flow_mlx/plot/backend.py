"""matplotlib, imported whatever MPLBACKEND says: a process that a notebook started may inherit a backend that it does not have."""

import os
import sys
import warnings

VARIABLE = "MPLBACKEND"


def import_matplotlib() -> None:
    """Import matplotlib. A backend that it does not find is a warning and not, as in matplotlib itself, the end: files need none."""
    if "matplotlib" in sys.modules:
        return
    wanted = os.environ.pop(VARIABLE, None)
    try:
        import matplotlib
    finally:
        if wanted is not None:
            os.environ[VARIABLE] = wanted
    if wanted:
        try:
            matplotlib.rcParams["backend"] = wanted  # as matplotlib would have done
        except ValueError as error:
            warnings.warn(f"{VARIABLE}={wanted} is left aside: {error}", stacklevel=2)
