"""EnergyLattice: the W x H x D space, and the flows in it as a structure of arrays."""

from typing import Any, NamedTuple

import mlx.core as mx

from ..config import ModelConfig
from ..ops import geometry
from ..ops.collect import collect, shares
from ..place import whole
from .shapes import as_rows


class FlowState(NamedTuple):
    """All flows of a batch. Sample b has slots b*C to (b+1)*C - 1: first its W*H first flows, cell by cell, then its children.

    Shapes never change while flows live, arrive and are born, so a step is traced once. N = B * C.
    """

    position: mx.array  # [N, 3] in [-1, 1]
    energy: mx.array  # [N, 1]
    hidden: tuple[mx.array, ...]  # L arrays [N, Hd]; in evaluation by whole steps one, as WholeStep has it
    age: mx.array  # [N] int32, steps taken
    active: mx.array  # [N] bool, still moving
    arrived: mx.array  # [N] bool, stands on an output plane
    sample: mx.array  # [N] int32, row of the batch
    parent: mx.array  # [N] int32, slot within the sample of the flow that spawned this one; -1: a first flow or an empty slot
    children: mx.array  # [B] int32, child slots in use
    dropped: mx.array  # [] int32, flows given up so far
    overflowed: mx.array  # [] int32, children for which there was no room


class EnergyLattice:
    """The two ends of a flow's life, for one configuration: placing flows, and collecting them. Holds no weights."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.width, self.height, self.depth = config.lattice_width, config.lattice_height, config.lattice_depth

    def place_initial_energy(self, surface: mx.array, dtype: mx.Dtype = mx.float32) -> FlowState:
        """One flow for each cell of the surfaces [B, S] or [B, H, W], on the centre plane, with the cell's value as energy.

        `dtype` is that of the hidden state; positions and energies are float32.

        Raises:
            ValueError: the surface has another size, or the batch needs more than `max_active_flows` flows.
        """
        config = self.config
        surface = as_rows("surface", surface, self.width, self.height).astype(mx.float32)
        batch, cells = surface.shape
        slots = config.slots_per_sample
        if whole(batch) * cells > config.max_active_flows:
            raise ValueError(
                f"max_active_flows={config.max_active_flows}: a batch of {whole(batch)} surfaces of {cells} cells starts "
                f"{whole(batch) * cells} flows; raise max_active_flows or lower the batch"
            )
        position = mx.pad(self._starts(), [(0, slots - cells), (0, 0)])  # [C, 3]
        energy = mx.pad(surface, [(0, 0), (0, slots - cells)])  # [B, C]
        number = batch * slots
        zero = mx.array(0, dtype=mx.int32)
        return FlowState(
            position=mx.tile(position, (batch, 1)),
            energy=energy.reshape(number, 1),
            hidden=(mx.zeros((number, config.carrier_hidden_size), dtype=dtype),) * config.carrier_num_layers,
            age=mx.zeros((number,), dtype=mx.int32),
            active=mx.tile(mx.arange(slots) < cells, (batch,)),
            arrived=mx.zeros((number,), dtype=mx.bool_),
            sample=mx.repeat(mx.arange(batch, dtype=mx.int32), slots),
            parent=mx.full((number,), -1, dtype=mx.int32),
            children=mx.zeros((batch,), dtype=mx.int32),
            dropped=zero,
            overflowed=zero,
        )

    def collect(self, state: FlowState, collected: mx.array) -> mx.array:
        """The surface [B, S] that the flows marked in `collected` [N] bool leave."""
        return collect(state.energy, state.position, state.age, state.sample, collected, **self._collection(state))

    def shares(self, state: FlowState, collected: mx.array) -> tuple[mx.array, mx.array]:
        """The cells [N, K] in which those flows are collected, and their weights [N, K] there; see `ops.collect.shares`."""
        return shares(state.energy, state.position, state.age, state.sample, collected, **self._collection(state))

    def _collection(self, state: FlowState) -> dict[str, Any]:
        batch, method = state.children.shape[0], self.config.collection
        return {"batch": batch, "width": self.width, "height": self.height, "method": method}

    def occupied(self, state: FlowState, collected: mx.array) -> mx.array:
        """How many cells hold at least one flow of those marked in `collected` [N] bool: [] int32, over all samples."""
        surface = self.width * self.height
        cell = state.sample * surface + geometry.cell_index(state.position, self.width, self.height)
        # Sorted, equal cells are neighbours: counting them needs no scatter, which MLX on CUDA takes seconds to compile.
        cells = mx.sort(mx.where(collected, cell, -1))
        first = mx.concatenate([cells[:1] >= 0, (cells[1:] != cells[:-1]) & (cells[1:] >= 0)])
        return mx.sum(first)

    def sideways(self, state: FlowState) -> mx.array:
        """[]: the mean distance in x and y, in cells, between where the first flows are and where they started."""
        batch, first = state.children.shape[0], self.width * self.height
        now = mx.stop_gradient(state.position).reshape(batch, -1, 3)[:, :first, :2]
        cells = (now - self._starts()[:, :2]) * (mx.array([self.width - 1, self.height - 1]) / 2)
        return mx.mean(mx.sqrt(mx.sum(cells * cells, axis=-1)))

    def _starts(self) -> mx.array:
        """Where the first flows of a sample start [S, 3]: cell by cell on the centre plane."""
        index = mx.arange(self.width * self.height)
        centre = mx.full(index.shape, self.depth // 2)
        lattice = mx.stack([index % self.width, index // self.width, centre], axis=1)
        return geometry.normalise(lattice, self.width, self.height, self.depth)


def mean_distance(state: FlowState) -> mx.array:
    """[]: the mean distance to the nearest plane of the flows that move or have arrived; 0 if there is none. Differentiable."""
    lives = state.arrived | state.active
    total = mx.sum(mx.where(lives, geometry.distance_to_plane(state.position), 0.0))
    return total / mx.maximum(mx.sum(lives), 1)
