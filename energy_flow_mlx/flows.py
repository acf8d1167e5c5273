"""Flows: where every flow was at every step, as arrays on the host."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class Flows:
    """The flows of B samples over T - 1 steps; T = steps done + 1, and row 0 is before the first step.

    A sample has C slots: its S = W * H first flows, cell by cell, then children in the order of their births. Samples with fewer children
    than others have empty slots at the end, where `born` is -1.

    position [T, B, C, 3] in [-1, 1]; energy [T, B, C]; active [T, B, C] bool: still moving; arrived [T, B, C] bool: stands on an output
    plane (neither: dropped, or not born yet); age [T, B, C]: steps taken. born [B, C]: the step after which a flow is there, 0 for first
    flows. parent [B, C]: slot of the flow that left this child, else -1. cell [B, C, K] and weight [B, C, K]: the cells (y * W + x, or -1)
    in which a flow is collected, and its part there; K is 1, or 4 for bilinear collection. start [B, S]: the energies at the start.
    surface [B, S]: what the flows leave, the sum of weight * energy in each cell.
    """

    position: NDArray[np.float32]
    energy: NDArray[np.float32]
    active: NDArray[np.bool_]
    arrived: NDArray[np.bool_]
    age: NDArray[np.int32]
    born: NDArray[np.int32]
    parent: NDArray[np.int32]
    cell: NDArray[np.int32]
    weight: NDArray[np.float32]
    start: NDArray[np.float32]
    surface: NDArray[np.float32]
    width: int
    height: int
    depth: int

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.position) - 1

    @property
    def samples(self) -> int:
        """B."""
        return len(self.born)

    @property
    def exists(self) -> NDArray[np.bool_]:
        """Which flows are there at each step [T, B, C]: born, and arrived, moving or dropped."""
        steps = np.arange(len(self.position))[:, None, None]
        return (self.born >= 0) & (self.born <= steps)
