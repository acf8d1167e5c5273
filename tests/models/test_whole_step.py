"""Evaluation by whole steps, each one kernel, is evaluation part by part; and where it is not taken the reason is told."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from models.small import SMALL, lively_model, random_surface
from ops.kernel_parity import backends, kernels_on

from energy_flow_mlx.models.step import FlowStep
from energy_flow_mlx.models.whole_step import why_apart
from energy_flow_mlx.ops.kernel import VARIABLE

SUITED: dict[str, Any] = {"carrier_hidden_size": 16, "neuron_hidden_dim": 4}
OTHER: dict[str, Any] = {
    "boundary_reflection_enabled": False,
    "enable_displacement_filtering": True,
    "min_displacement_threshold": 0.3,
    "enable_gru_nan_protection": False,
}


def evaluated(setting: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, np.ndarray]:
    """What flows of a model leave after their lives, the same of their single steps, and their positions after each step."""
    monkeypatch.setenv(VARIABLE, setting)
    model, positions = lively_model(factor=12.0, **SUITED, **changes), []

    def witness(_: int, flows: Any) -> None:
        positions.append(flows.position)

    surface = random_surface(5, 12)
    of_lives, (of_steps, *_) = model.processor(surface), model.processor.watch(surface, witness)
    found = {f"{name}, {way}": np.array(value) for way, result in (("lives", of_lives), ("steps", of_steps)) for name, value in result._asdict().items()}
    return found | {"positions": np.array(mx.stack(positions))}


@backends
@pytest.mark.parametrize("changes", [{}, OTHER], ids=["as it is", "other settings"])
def test_whole_steps_leave_what_steps_part_by_part_leave(where: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with mx.stream(mx.cpu):
        wanted = evaluated("off", monkeypatch, **changes)
    with monkeypatch.context() as patch, kernels_on(where):
        patch.setattr(FlowStep, "__call__", lambda *_: pytest.fail("the parts of a step were called"))
        actual = evaluated("off,+flow_step", monkeypatch, **changes)
    assert wanted["reached_z0, lives"] + wanted["reached_zdepth, lives"] > 0
    assert (wanted["dropped, lives"] > 0) == ("enable_displacement_filtering" in changes)
    for name, value in wanted.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_step_is_whole_only_where_it_is_asked_for_and_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    def why(setting: str, **changes: Any) -> str:
        monkeypatch.setenv(VARIABLE, setting)
        return why_apart(FlowStep(SMALL.replace(**{**SUITED, **changes})))

    assert why("on") == why("auto,+flow_step") == ""
    assert "ENERGY_FLOW_KERNELS=auto,+flow_step turns it on" in why("auto") and why("auto") == why("on,-flow_step")
    assert "movement_based_spawn=True" in why("on", movement_based_spawn=True)
    assert "carrier_hidden_size=24" in why("on", carrier_hidden_size=24)
    assert "gru_output_clip_value" in why("on", gru_input_clip_value=1.0, gru_output_clip_value=2.0)


def test_a_size_that_does_not_suit_goes_on_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    surface = random_surface(2, 12)
    monkeypatch.setenv(VARIABLE, "off")
    wanted = lively_model().processor(surface).surface
    monkeypatch.setenv(VARIABLE, "off,+flow_step")
    np.testing.assert_array_equal(np.array(lively_model().processor(surface).surface), np.array(wanted))
