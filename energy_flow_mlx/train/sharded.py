"""AdamW whose moments are divided among the processes of a run (ZeRO stage 1, Rajbhandari et al., 2020).

Of each tensor, flattened, a process holds the moments of one of `world.size` equal parts. It steps that part alone, and the new parts of
all processes make the new tensor. Every number takes the step that it takes in one process.
"""

import math
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map, tree_map_with_path

from ..distributed import World
from ..ops.adamw import SMALL
from .optimiser import AdamW, named_arrays


class ShardedAdamW(AdamW):
    """`whole`, a part of whose moments this process holds.

    Args:
        whole: with all moments, those of a checkpoint or zeros.
        parameters: the tree of arrays that it trains.
        world: its processes.
    """

    def __init__(self, whole: AdamW, parameters: Any, world: World) -> None:
        super().__init__(0.0, whole.betas, whole.eps, whole.weight_decay, bias_correction=True)
        self.flow_rate = whole.flow_rate
        self._world = world
        self._shapes = {name: array.shape for name, array in named_arrays(parameters).items()}
        self.state = tree_map_with_path(lambda path, array: self._part(array) if _is_moment(path) else array, whole.state)
        self._initialized = True
        mx.eval(self.state)

    def apply_gradients(
        self, gradients: Any, parameters: Any, factors: mx.array | None = None, go: mx.array | None = None
    ) -> Any:
        """As `AdamW.apply_gradients`: whole gradients and parameters, whole parameters after the step."""
        parts = tree_map(lambda gradient, parameter: self._part(parameter), gradients, parameters)
        stepped = super().apply_gradients(tree_map(self._part, gradients), parts, factors, go)
        found = self._gathered(named_arrays(stepped))
        return tree_map_with_path(lambda path, _: self._shaped(path, found[path]), stepped)

    def whole(self) -> AdamW:
        """The optimiser with all moments, as checkpoints hold it; all processes call this, and the first one gets the moments."""
        found: dict[str, mx.array] = {}
        named = named_arrays(self.state)
        for path in sorted(filter(_is_moment, named)):  # one at a time, in an order that is the same everywhere
            gathered = self._world.all(named[path])
            mx.eval(gathered)
            if self._world.first:
                found[path] = self._shaped(path.rpartition(".")[0], gathered)
        optimiser = AdamW(0.0, self.betas, self.eps, self.weight_decay, bias_correction=True)
        optimiser.state = tree_map_with_path(lambda path, array: found.get(path, array), self.state)
        return optimiser

    def _gathered(self, parts: dict[str, mx.array]) -> dict[str, mx.array]:
        """The parts of all processes after each other, of each tensor; small ones travel together. The order of the collectives is that
        of the names: the order of a tree may differ between a new run and one that was read."""
        small = sorted(path for path, part in parts.items() if part.size < SMALL)
        found = {path: self._world.all(parts[path]) for path in sorted(parts.keys() - set(small))}
        if small:
            joined = self._world.all(mx.concatenate([parts[path] for path in small])).reshape(self._world.size, -1)
            ends = np.cumsum([parts[path].size for path in small])[:-1].tolist()
            found.update(zip(small, mx.split(joined, ends, axis=1), strict=True))
        return found

    def _part(self, array: mx.array) -> mx.array:
        """The part [ceil(n / size)] of an array of n numbers that is this process's; zeros fill the last ones."""
        size = -(-array.size // self._world.size)
        part = array.reshape(-1)[self._world.rank * size : (self._world.rank + 1) * size]
        return mx.pad(part, (0, size - part.size)) if part.size < size else part

    def _shaped(self, path: str, parts: mx.array) -> mx.array:
        """The tensor `path` from the parts of all processes in order."""
        shape = self._shapes[path]
        return parts.reshape(-1)[: math.prod(shape)].reshape(shape)


def _is_moment(path: str) -> bool:
    return path.rpartition(".")[2] in ("m", "v")


def whole(optimiser: AdamW) -> AdamW:
    """The optimiser with all its moments; of a sharded one all processes call this, and the first one gets them."""
    return optimiser.whole() if isinstance(optimiser, ShardedAdamW) else optimiser
