"""How several processes come to one run: the first one prepares it, the others start from its checkpoint."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import EnergyConfig
from ..data.source import Order
from ..distributed import World
from . import checkpoint, memory
from .prepare import Prepared, prepare
from .sharded import ShardedAdamW


def lead(world: World, run: Prepared, shard_optimiser: bool = False) -> Prepared:
    """Give the run of the first process, whose folder holds its checkpoint, to the others.

    Returns:
        The run; with `shard_optimiser` its optimiser holds a part of the moments.
    """
    if world.size == 1:
        return run
    files = {name: path.read_bytes() for name, path in checkpoint.files(run.folder).items()}
    world.exchange([str(run.folder), run.config.to_dict(), {name: len(data) for name, data in files.items()}, shard_optimiser])
    data = b"".join(files.values())
    world.from_first(data, len(data))
    return _sharded(world, run) if shard_optimiser else run


def follow(world: World) -> Prepared:
    """The run of the first process, for another one, which writes nothing: its `folder` is the name of the first one's.

    The data are opened by the name that the first process has for them.

    Raises:
        OSError: the checkpoint does not fit into the folder for temporary files. Other errors are those of `prepare`.
    """
    shown, fields, sizes, shard_optimiser = world.exchange(None)[0]
    config = EnergyConfig.from_dict(fields)
    memory.limit(memory.share(config, world.size))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / Path(shown).name
        folder.mkdir()
        data, at = world.from_first(None, sum(sizes.values())), 0
        for name, size in sizes.items():
            (folder / name).write_bytes(data[at : at + size])
            at += size
        run = prepare(config, folder, resume=True)._replace(folder=Path(shown))
    return _sharded(world, run) if shard_optimiser else run


def _sharded(world: World, run: Prepared) -> Prepared:
    return run._replace(optimiser=ShardedAdamW(run.optimiser, run.model.trainable_parameters(), world))


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
