"""How several processes come to one run: the first one prepares it, the others start from its checkpoint."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import EnergyConfig
from ..data.source import Order
from ..distributed import World
from ..files import resolve
from . import checkpoint, memory
from .prepare import Prepared, prepare


def lead(world: World, run: Prepared) -> None:
    """Give the run of the first process, whose folder holds its checkpoint, to the others."""
    if world.size == 1:
        return
    names = [name for name in checkpoint.FILES if resolve(run.folder, name).is_file()]
    world.exchange([str(run.folder), run.config.to_dict(), names])
    for name in names:
        world.from_first(resolve(run.folder, name).read_bytes())


def follow(world: World) -> Prepared:
    """The run of the first process, for another one, which writes nothing: its `folder` is the name of the first one's.

    The data are opened by the name that the first process has for them.

    Raises:
        OSError: the checkpoint does not fit into the folder for temporary files. Other errors are those of `prepare`.
    """
    shown, fields, names = world.exchange(None)[0]
    config = EnergyConfig.from_dict(fields)
    memory.limit(memory.share(config, world.size))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / Path(shown).name
        folder.mkdir()
        for file in names:
            (folder / file).write_bytes(world.from_first(b""))
        return prepare(config, folder, resume=True)._replace(folder=Path(shown))


class OwnPairs:
    """Of each batch of `order` the pairs of this process."""

    def __init__(self, order: Order, world: World) -> None:
        self._order, self._world = order, world

    def indices(self, step: int) -> NDArray[np.int64]:
        """The indices [B / world.size] of step `step`."""
        return self._world.own(self._order.indices(step))


class Unheard:
    """Stands for `Progress` in the processes that report nothing."""

    def __enter__(self) -> "Unheard":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def trained(self, *_: Any) -> None:
        """Nothing is shown or written."""

    validated = saved = trained
