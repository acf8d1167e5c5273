"""Coordinates: normalisation, O(1) quantisation against a search, reflection, planes."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_flow_mlx.ops import geometry

SIZE = st.integers(2, 9)
anything = st.floats(width=32, allow_nan=True, allow_infinity=True)
inside = st.floats(-1, 1, width=32)


def rows(values: list[tuple[float, float, float]]) -> mx.array:
    return mx.array(np.array(values, dtype=np.float32).reshape(-1, 3))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(SIZE, SIZE, SIZE)
def test_every_lattice_point_survives_normalise_and_quantise(width: int, height: int, depth: int) -> None:
    points = np.stack(
        np.meshgrid(np.arange(width), np.arange(height), np.arange(depth + 1), indexing="ij"), -1
    ).reshape(-1, 3)
    position = geometry.normalise(mx.array(points), width, height, depth)
    spans = np.array([width - 1, height - 1, depth])
    np.testing.assert_allclose(np.array(position), 2 * points / spans - 1, atol=1e-6)
    assert np.array_equal(np.array(geometry.quantise(position, width, height, depth)), points)
    cells = geometry.cell_index(position, width, height)
    assert np.array_equal(np.array(cells), points[:, 1] * width + points[:, 0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZE, SIZE, SIZE, st.lists(st.tuples(inside, inside, inside), min_size=1, max_size=8))
def test_quantise_finds_the_nearest_point(width: int, height: int, depth: int, values: list) -> None:
    position = rows(values)
    found = np.array(geometry.quantise(position, width, height, depth))
    for axis, last in enumerate((width - 1, height - 1, depth)):
        centres = 2 * np.arange(last + 1) / last - 1
        distance = np.abs(np.array(position, dtype=np.float64)[:, axis, None] - centres)
        reached = np.take_along_axis(distance, found[:, axis, None], 1)[:, 0]
        assert (reached <= distance.min(1) + 1e-6).all()


def test_ties_go_to_the_even_point() -> None:
    middles = rows([(-0.75, -0.25, -0.75), (0.25, 0.75, 0.25)])
    assert geometry.quantise(middles, 5, 5, 4).tolist() == [[0, 2, 0], [2, 4, 2]]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZE, SIZE, SIZE, st.lists(st.tuples(anything, anything, anything), min_size=1, max_size=8))
def test_cells_are_in_range_whatever_the_position(width: int, height: int, depth: int, values: list) -> None:
    position = rows(values)
    points = np.array(geometry.quantise(position, width, height, depth))
    assert (points >= 0).all() and (points <= [width - 1, height - 1, depth]).all()
    cells = np.array(geometry.cell_index(position, width, height))
    assert np.array_equal(cells, points[:, 1] * width + points[:, 0])
    # Beyond the walls the nearest cell is at the wall; NaN goes to the first.
    x = np.array(position)[:, 0]
    assert (points[x > 1, 0] == width - 1).all() and (points[(x < -1) | np.isnan(x), 0] == 0).all()


@pytest.mark.parametrize(
    ("x", "mirrored"), [(-1.0, -1.0), (1.0, 1.0), (-1.25, -0.75), (1.5, 0.5), (0.3, 0.3), (3.5, -1.5)]
)
def test_reflect_mirrors_x_and_y_once_and_leaves_z(x: float, mirrored: float) -> None:
    reflected = geometry.reflect(rows([(x, 0.0, x), (0.0, x, x)]))
    np.testing.assert_allclose(np.array(reflected), [[mirrored, 0, x], [0, mirrored, x]], atol=1e-6)


def test_reflection_turns_the_gradient_round() -> None:
    gradient = mx.grad(lambda p: geometry.reflect(p).sum())(rows([(1.2, -1.2, 1.2), (0.5, -0.5, 0.0)]))
    assert gradient.tolist() == [[-1, -1, 1], [1, 1, 1]]


def test_nearest_plane_and_its_distance() -> None:
    position = rows([(0, 0, z) for z in (-1.0, -0.25, 0.0, 0.25, 1.0)])
    assert geometry.nearest_plane(position).tolist() == [-1, -1, -1, 1, 1]
    assert geometry.distance_to_plane(position).tolist() == [0, 0.75, 1, 0.75, 0]


def test_quantise_has_no_gradient() -> None:
    def cells(position: mx.array) -> mx.array:
        return geometry.quantise(position, 4, 3, 6).astype(mx.float32).sum() + position.sum()

    assert mx.grad(cells)(rows([(0.1, 0.2, 0.3)])).tolist() == [[1, 1, 1]]
