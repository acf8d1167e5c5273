"""The schedule's switches that are not visible in a surface: scale, noise key, adaptive stop, overflow, refusals."""

import logging

import mlx.core as mx
import numpy as np
import pytest
from models.paths import on_path
from models.small import SMALL, lively_model, random_surface

from energy_flow_mlx import EnergyCarrier, EnergyFlow

SCALE = SMALL.replace(
    displacement_scale=2.0,
    displacement_warmup_steps=10,
    displacement_scale_update_interval=5,
    displacement_scale_decay=0.5,
    displacement_scale_min=0.3,
)


@pytest.mark.parametrize(
    ("step", "scale"),
    [(None, 2.0), (0, 2.0), (9, 2.0), (10, 2.0), (14, 2.0), (15, 1.0), (19, 1.0), (20, 0.5), (25, 0.3), (9999, 0.3)],
)
def test_displacement_scale(step: int | None, scale: float) -> None:
    carrier = EnergyCarrier(SCALE)
    assert carrier.displacement_scale(step) == pytest.approx(scale)
    if step is not None:
        assert carrier.displacement_scale(mx.array(step)).item() == pytest.approx(scale)


def test_scale_multiplies_the_move() -> None:
    carrier = EnergyCarrier(SCALE)
    carrier.eval()
    carrier.displacement_projection[2].weight *= 0.01  # far from the bound of 0.5
    x, energy, position = mx.random.normal((4, 5)), mx.zeros((4, 1)), mx.zeros((4, 3))
    early = carrier(x, energy, None, position, training_step=0).raw_next_position
    late = carrier(x, energy, None, position, training_step=15).raw_next_position
    assert np.abs(np.array(early)).max() > 0
    np.testing.assert_allclose(np.array(early), 2 * np.array(late), rtol=1e-5)


def count_steps(model: EnergyFlow, path: str = "evaluation", **arguments: object) -> int:
    with on_path(path, model) as states:
        model.processor(random_surface(2, model.config.surface_dim), **arguments)
    return len(states)


def still(model: object) -> None:
    """Flows that stay where they are."""
    head = model.carrier.displacement_projection[2]
    head.weight, head.bias = mx.zeros_like(head.weight), mx.zeros_like(head.bias)


@pytest.mark.parametrize("kernels", ["", ", kernels"])
def test_adaptive_stop_once_enough_arrived(kernels: str) -> None:
    path = f"evaluation{kernels}"
    model = lively_model(convergence_enabled=True, convergence_min_steps=1)
    head = model.carrier.displacement_projection[2]
    head.weight, head.bias = mx.zeros_like(head.weight), mx.array([0.0, 0.0, 0.5])  # all arrive in two steps
    assert count_steps(model, path, steps=20) == 2
    assert count_steps(model, "by hand" if kernels else "autodiff", steps=20) == 20
    later = lively_model(convergence_enabled=True, convergence_min_steps=7)
    later.carrier.update(model.carrier.parameters())
    assert count_steps(later, path, steps=20) == 7


def test_adaptive_stop_without_progress() -> None:
    model = lively_model(convergence_enabled=True, convergence_min_steps=2, convergence_patience=3)
    still(model)
    # The first check, after step 2, sets what progress is measured from; three more without an arrival end the run.
    assert count_steps(model, steps=20) == 5
    off = lively_model()
    still(off)
    assert count_steps(off, steps=20) == 20


def test_noise_needs_a_key_and_only_in_training() -> None:
    model = lively_model(use_exploration_noise=True)
    surface = random_surface(2, model.config.surface_dim)
    quiet = np.array(model.processor(surface).surface)
    assert np.array_equal(quiet, np.array(model.processor(surface, key=mx.random.key(0)).surface))
    model.train()
    with pytest.raises(ValueError, match="key: None came; training with use_exploration_noise needs a random key"):
        model.processor(surface)
    runs = [np.array(model.processor(surface, key=mx.random.key(seed)).surface) for seed in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert not np.array_equal(runs[0], quiet)


def test_carrier_adds_the_noise_it_is_given() -> None:
    carrier = EnergyCarrier(SMALL)
    x, energy, position = mx.random.normal((4, 5)), mx.zeros((4, 1)), mx.zeros((4, 3))
    noise = mx.random.normal((4, 3))
    with_noise = carrier(x, energy, None, position, noise=noise).raw_next_position
    without = carrier(x, energy, None, position).raw_next_position
    np.testing.assert_allclose(np.array(with_noise - without), np.array(noise), atol=1e-6)


def test_overflow_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    model = lively_model(
        movement_based_spawn=True, spawn_movement_threshold_ratio=0.1, max_spawn_per_step=3, spawn_capacity=0.25
    )
    model.processor.train()
    result = model.processor(random_surface(2, model.config.surface_dim))
    lost = int(result.overflowed)
    assert lost > 0 and int(result.spawned) == 2 * 3  # a quarter of 12 cells, in both samples
    with caplog.at_level(logging.WARNING):
        model.processor.log_overflow(0)
        assert not caplog.records
        model.processor.log_overflow(lost)
        model.processor.log_overflow(lost)
    assert len(caplog.records) == 1
    assert f"{lost} children found no room" in caplog.text and "spawn_capacity=0.25" in caplog.text


@pytest.mark.parametrize("steps", [0, -1, 801])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps} came, accepted are 1 to 800"):
        lively_model().processor(random_surface(1, 12), steps=steps)


def test_wrong_surfaces_are_refused() -> None:
    model = lively_model(max_active_flows=30)
    with pytest.raises(ValueError, match=r"surface: shape \(2, 13\) came, accepted are \(B, 12\) and \(B, 3, 4\)"):
        model.processor(mx.zeros((2, 13)))
    with pytest.raises(ValueError, match=r"surface: shape \(2, 4, 3\) came"):
        model.processor(mx.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match="max_active_flows=30: a batch of 3 surfaces of 12 cells starts 36 flows"):
        model.processor(mx.zeros((3, 12)))
