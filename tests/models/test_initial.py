"""Initial weights with which flows carry their energy to the plane z = -1."""

import mlx.core as mx
import numpy as np
import pytest
from models.paths import on_path
from models.small import SMALL

from energy_flow_mlx import EnergyFlow

CARRYING = SMALL.replace(initial_weights="carrying", collection="bilinear")


def flow(energies: np.ndarray, **changes: object) -> tuple[np.ndarray, np.ndarray]:
    """Positions and energies [N, ..] at the end of the life of flows with these energies [N], one in each cell."""
    mx.random.seed(3)
    model = EnergyFlow(CARRYING.replace(lattice_width=len(energies) // 2, lattice_height=2, **changes))
    with on_path("evaluation", model) as states:
        model.processor(mx.array(energies[None].astype(np.float32)))
    return np.array(states[-1].position), np.array(states[-1].energy)[:, 0]


@pytest.mark.parametrize("depth", [4, 6, 7, 10, 41])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_flow_goes_straight_to_the_plane_and_keeps_the_order_of_energies(depth: int, layers: int) -> None:
    energies = np.linspace(-0.25, 0.25, 20)
    energies[10] = 0.0  # it goes too
    position, energy = flow(energies, lattice_depth=depth, carrier_num_layers=layers)
    start = np.stack([2 * (np.arange(20) % 10) / 9 - 1, 2.0 * (np.arange(20) // 10) - 1], axis=1)
    np.testing.assert_allclose(position[:, :2], start, atol=1e-6)
    assert (position[:, 2] == -1).all()
    assert np.array_equal(np.argsort(energy), np.arange(20))
    assert np.corrcoef(energy, energies)[0, 1] > 0.99


def test_the_scale_of_displacements_is_allowed_for() -> None:
    position, _ = flow(np.linspace(-0.25, 0.25, 20), displacement_scale=0.5, displacement_scale_min=0.5)
    assert (position[:, 2] == -1).all()


def test_the_reference_weights_are_the_default() -> None:
    mx.random.seed(0)
    plain = EnergyFlow(SMALL)
    assert plain.config.initial_weights == "reference"
    assert mx.array_equal(plain.carrier.gru[0].b, mx.array([0.0] * 8 + [2.0] * 8 + [0.0] * 8))


@pytest.mark.parametrize("residual", [True, False])
def test_with_the_residual_an_untrained_model_gives_its_input(residual: bool) -> None:
    model = EnergyFlow(CARRYING.replace(input_residual=residual))
    model.eval()
    x = mx.random.normal((3, 10))
    assert bool(mx.array_equal(model(x).embedding, x)) == residual


def test_without_flows_the_surface_goes_straight_to_the_collector() -> None:
    model = EnergyFlow(CARRYING.replace(flows_enabled=False))
    model.eval()
    x = mx.random.normal((3, 10))
    out = model(x)
    assert mx.array_equal(out.surface, model.map_to_surface(x).reshape(3, -1))
    assert mx.array_equal(out.embedding, model.collector(out.surface))
    assert all(count.item() == 0 for count in out.flow[1:])
