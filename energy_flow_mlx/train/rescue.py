"""Where a run cannot read or write any more: its steps since the last checkpoint are saved, in its folder or elsewhere."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..cli import reason
from ..program import call_of
from .checkpoint import HYPOTHESES, METRICS
from .keeping import copy_best
from .prepare import Prepared
from .step import TrainStep

# In this order. The last one is memory, on Linux: lost with the machine, but there when every disk is full.
PLACES = ("$TMPDIR", "/tmp", ".", "~", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def rescued(run: Prepared, step: TrainStep, save: Callable[[Path], None]) -> Iterator[None]:
    """Inside, an error of reading or writing ends the run with its last step saved, if any folder takes it.

    Args:
        save: saves the run as it stands in a folder.

    Raises:
        OSError: the error, the number of steps done, and where they are saved or why nowhere.
    """
    try:
        yield
    except OSError as error:
        if not step.alive:  # its loss is not finite: the last checkpoint is what is worth keeping
            raise
        done = run.state.step
        try:
            folder = _saved(run, save)
        except OSError as last:
            raise OSError(f"{reason(error)}; step {done} could not be saved elsewhere either: {reason(last)}") from error
        raise OSError(f"{reason(error)}; step {done} is saved, go on with:\n  {call_of('train')} --resume {folder}") from error


def _saved(run: Prepared, save: Callable[[Path], None]) -> Path:
    """The first folder that takes the run: its own, or a new one in PLACES."""
    with contextlib.suppress(OSError):
        save(run.folder)
        return run.folder
    last = OSError("there is no other folder")
    for place in filter(os.path.isdir, map(os.path.expanduser, map(os.path.expandvars, PLACES))):
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{run.folder.name}-step{run.state.step}-", dir=os.path.abspath(place)))
            save(folder)
        except OSError as error:
            last = error
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            continue
        for name in (METRICS, HYPOTHESES):
            with contextlib.suppress(OSError):
                shutil.copyfile(run.folder / name, folder / name)
        with contextlib.suppress(OSError):
            copy_best(run.folder, folder)
        return folder
    raise last
