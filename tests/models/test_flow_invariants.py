"""What holds for every flow, whatever the inputs, the weights and the size of the lattice."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map
from models.paths import KERNELS, PATHS, PLAIN, changes_of, on_path
from models.small import SMALL, lively_model, random_surface

from energy_flow_mlx import EnergyFlow, FlowResult, FlowState
from energy_flow_mlx.ops.geometry import cell_index

SPAWN: dict[str, Any] = {
    "movement_based_spawn": True,
    "spawn_movement_threshold_ratio": 0.12,
    "max_spawn_per_step": 2,
    "spawn_capacity": 1.5,
}
SIZE = st.integers(2, 9)
seldom = settings(max_examples=12, deadline=None, derandomize=True)


def states_of(model: EnergyFlow, surface: mx.array, path: str = "evaluation") -> tuple[list[FlowState], FlowResult]:
    """The state before the first step and after each, and the result."""
    first = model.processor.lattice.place_initial_energy(surface)
    with on_path(path, model) as states:
        result = model.processor(surface, key=mx.random.key(0))
        mx.eval(states, result)
    return [first, *states], result


def surfaces(values: list[float], batch: int, cells: int) -> mx.array:
    return mx.array(np.resize(np.array(values, dtype=np.float32), (batch, cells)))


@seldom
@given(
    st.tuples(SIZE, SIZE, SIZE),
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=9),
    st.sampled_from([0.0, 1.0, 1e4, 1e30, float("inf"), float("nan")]),
    st.booleans(),
    st.sampled_from(["nearest", "bilinear"]),
    st.sampled_from(PLAIN),
)
def test_positions_and_cells_stay_in_range(
    size: tuple[int, int, int], values: list[float], factor: float, reflection: bool, collection: str, path: str
) -> None:
    check_ranges(size, values, factor, reflection, collection, path)


@pytest.mark.parametrize("path", KERNELS)
@pytest.mark.parametrize("factor", [1.0, 1e30, float("nan")])
def test_positions_and_cells_stay_in_range_with_kernels(factor: float, path: str) -> None:
    values = [float("nan"), float("inf"), -0.7, 1e30, -float("inf")]
    check_ranges((4, 3, 6), values[2:3] if factor == 1.0 else values, factor, True, "bilinear", path)


def check_ranges(
    size: tuple[int, int, int], values: list[float], factor: float, reflection: bool, collection: str, path: str
) -> None:
    width, height, depth = size
    changes = {**SPAWN, **changes_of(path), "boundary_reflection_enabled": reflection, "collection": collection}
    model = lively_model(1, lattice_width=width, lattice_height=height, lattice_depth=depth, **changes)
    for module in (model.neuron, model.carrier):
        module.update(tree_map(lambda x: x * factor, module.parameters()))
    states, result = states_of(model, surfaces(values, 2, width * height), path)
    assert len(states) > 1 and (len(states) - 1) % (depth // 2) == 0  # evaluation runs again with more room
    for state in states:
        position, cell = np.array(state.position), np.array(cell_index(state.position, width, height))
        assert (np.abs(position) <= 1).all()  # false for NaN
        assert ((cell >= 0) & (cell < width * height)).all()
    assert result.surface.shape == (2, width * height)
    if np.isfinite(values).all() and factor <= 1e4:
        assert np.isfinite(np.array(result.surface)).all()


@seldom
@given(st.tuples(SIZE, SIZE, SIZE), st.integers(0, 5), st.integers(0, 2), st.sampled_from([0.0, 0.4, 3.0]))
def test_the_counts_account_for_every_flow(size: tuple[int, int, int], seed: int, most: int, capacity: float) -> None:
    width, height, depth = size
    cells, bound = width * height, 2 * width * height + 9
    changes = {**SPAWN, "max_spawn_per_step": most, "spawn_capacity": capacity, "max_active_flows": bound}
    model = lively_model(seed, lattice_width=width, lattice_height=height, lattice_depth=depth, **changes)
    states, result = states_of(model, random_surface(2, cells, seed), "autodiff")
    counts = {name: int(value) for name, value in result._asdict().items() if name != "surface"}
    ended = sum(counts[name] for name in ("reached_z0", "reached_zdepth", "projected", "dropped"))
    assert ended == 2 * cells + counts["spawned"]
    assert counts["spawned"] <= 2 * (model.config.slots_per_sample - cells)
    assert all(int(mx.sum(state.active)) <= bound for state in states)
    if most == 0 or depth < 4:
        assert counts["spawned"] == 0 or depth >= 2
    for earlier, later in zip(states, states[1:], strict=False):
        arrived = np.array(earlier.arrived)
        assert np.array(later.arrived)[arrived].all()
        assert np.array_equal(np.array(later.position)[arrived], np.array(earlier.position)[arrived])
        assert not (np.array(later.active) & np.array(later.arrived)).any()


@pytest.mark.parametrize("path", PATHS)
def test_children_inherit_energy_hidden_state_and_the_place_before_the_move(path: str) -> None:
    model = lively_model(**SPAWN | {"max_spawn_per_step": 1, "spawn_capacity": 9.0}, **changes_of(path))
    states, result = states_of(model, random_surface(2, model.config.surface_dim), path)
    slots, born = model.config.slots_per_sample, 0
    for before, after in zip(states, states[1:], strict=False):
        new = np.flatnonzero((np.array(after.parent) >= 0) & (np.array(before.parent) < 0))
        born += len(new)
        parent = new // slots * slots + np.array(after.parent)[new]
        assert np.array_equal(np.array(after.position)[new], np.array(before.position)[parent])
        assert np.array_equal(np.array(after.energy)[new], np.array(after.energy)[parent])
        assert np.array_equal(np.array(after.hidden)[:, new], np.array(after.hidden)[:, parent])
        assert np.array_equal(np.array(after.sample)[new], np.array(after.sample)[parent])
        assert not np.array(after.age)[new].any() and np.array(after.active)[new].all()
        # In order of their parents, right behind those that were born before.
        for sample in (0, 1):
            mine = new[new // slots == sample]
            first = sample * slots + model.config.surface_dim + int(before.children[sample])
            assert mine.tolist() == list(range(first, first + len(mine)))
            assert (np.diff(np.array(after.parent)[mine]) >= 0).all()
    assert born == int(result.spawned) > 0


def test_two_runs_are_bitwise_alike() -> None:
    model = lively_model(**SPAWN)
    surface = random_surface(3, model.config.surface_dim)
    first, second = model.processor(surface), model.processor(surface)
    for name, one, other in zip(first._fields, first, second, strict=True):
        assert np.array_equal(np.array(one), np.array(other)), name


@seldom
@given(SIZE, SIZE)
def test_one_surface_size_in_every_module(width: int, height: int) -> None:
    model = lively_model(lattice_width=width, lattice_height=height)
    config, cells = model.config, width * height
    assert config.surface_dim == cells
    embeddings = mx.zeros((2, config.embedding_dim))
    grid = model.mapper.map_to_surface(embeddings)
    assert grid.shape == (2, height, width)
    flow = model.processor(grid)
    assert flow.surface.shape == (2, cells)
    assert model.collector.collect(flow.surface).shape == (2, config.embedding_dim)
    ids = mx.zeros((2, 3), dtype=mx.int32)
    assert model.text_encoder(ids, mx.ones_like(ids)).shape == (2, cells)
    assert model.collector.position_weights.shape == model.mapper.positional_encoding.shape == (height, width)


def test_weights_are_shared_and_counted_once() -> None:
    model = EnergyFlow(SMALL)
    assert tree_flatten(model.processor.parameters()) == []
    parts = (model.neuron, model.carrier, model.mapper, model.collector, model.text_encoder)
    names = [name for name, _ in tree_flatten(model.parameters())]
    assert len(names) == len(set(names)) == sum(len(tree_flatten(part.parameters())) for part in parts)
    larger = EnergyFlow(SMALL.replace(lattice_depth=9))
    assert [name for name, _ in tree_flatten(larger.parameters())] == names
    surface = random_surface(1, SMALL.surface_dim)
    before = np.array(model.processor(surface).surface)
    head = model.carrier.energy_projection[2]
    head.bias = head.bias + 1.0
    assert not np.allclose(before, np.array(model.processor(surface).surface))


@pytest.mark.parametrize("protected", [True, False])
def test_protection_at_the_gru(protected: bool) -> None:
    model = lively_model(enable_gru_nan_protection=protected)
    config = model.config
    features = mx.zeros((2, config.neuron_output_dim)) + mx.array([[float("nan")], [0.0]])
    out = model.carrier(features, mx.zeros((2, 1)), None, mx.zeros((2, 3)))
    assert np.isfinite(np.array(out.hidden)[:, 0]).all() == protected
    assert np.isfinite(np.array(out.hidden)[:, 1]).all()
    assert (np.abs(np.array(out.next_position)) <= 1).all()
