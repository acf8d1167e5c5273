"""The trace of a run."""

import json

import mlx.core as mx
import numpy as np
import pytest
from metal_cpu import metal_on_cpu
from train.small import arguments, small_config, small_data, small_model

from energy_flow_mlx.ops import kernel
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train import step as training_step
from energy_flow_mlx.train.optimiser import make_optimiser, named_arrays
from energy_flow_mlx.train.profile import SKIPPED, TRACED, Profile, ProfileError
from energy_flow_mlx.train.step import TrainStep

STAGES = {
    "mapper", "place", "neuron", "GRU", "heads", "advance", "collect", "collector", "text encoder",
    "loss and gradients", "backward", "clip", "optimiser",
}  # fmt: skip
not_metal = pytest.mark.skipif(mx.metal.is_available(), reason="a Mac with Metal captures instead")


@not_metal
def test_a_run_leaves_a_trace_of_its_stages(tmp_path, capsys):
    loud = [word for word in arguments(tmp_path / "run") if word != "--quiet"]
    assert train.main([*loud, "--profile", str(tmp_path / "profile")]) == 0
    assert f"{tmp_path / 'profile' / 'trace.json'} has the trace\n" in capsys.readouterr().out
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    steps = [event for event in events if event["name"].startswith("step ")]
    assert [event["name"] for event in steps] == [f"step {SKIPPED + number}" for number in range(TRACED)]
    for step in steps:
        inside = [
            event for event in events
            if event is not step and step["ts"] <= event["ts"] and event["ts"] + event["dur"] <= step["ts"] + step["dur"]
        ]  # fmt: skip
        assert {event["name"] for event in inside} == STAGES
        assert sum(event["name"] == "neuron" for event in inside) == 2
        whole = {event["name"]: event for event in inside}
        assert whole["backward"]["dur"] < whole["loss and gradients"]["dur"]


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_every_stage_has_a_span_with_kernels_and_without(kernels, monkeypatch):
    monkeypatch.setenv(kernel.VARIABLE, kernels)
    monkeypatch.setattr(kernel, "backend", lambda: "metal")
    config = small_config()
    model, optimiser, profile = small_model(config), make_optimiser(config), Profile(None)
    step = TrainStep(model, optimiser, config)
    with metal_on_cpu(caches=[kernel.build]) as session, profile.recorded(step):
        step(0, [small_data(config).train.batch(np.arange(4))], 1e-3)
    names = [span["name"] for span in profile._spans]
    assert set(names) == STAGES
    assert [names.count(stage) for stage in ("neuron", "GRU", "heads", "advance")] == [config.flow_steps] * 4
    assert bool(session.launches) == (kernels == "on")


@not_metal
def test_profiling_changes_nothing(tmp_path):
    def trained(folder):
        config = small_config()
        model, data = small_model(config), small_data(config)
        optimiser = make_optimiser(config)
        optimiser.init(model.trainable_parameters())
        step, profile = TrainStep(model, optimiser, config), Profile(folder)
        for number in range(SKIPPED + TRACED + 1):
            with profile.step(number, step):
                step(number, [data.train.batch(mx.arange(4))], 1e-3)
        return named_arrays(model.parameters()), step

    before = training_step.clip_factors
    plain, _ = trained(None)
    profiled, step = trained(tmp_path)
    assert training_step.clip_factors is before and "_sums" not in vars(step)
    assert plain.keys() == profiled.keys()
    for name, array in plain.items():
        assert mx.allclose(array, profiled[name], atol=1e-6).item(), name


def test_a_short_run_says_so(tmp_path, capsys):
    flags = arguments(tmp_path / "run", training_steps=2)
    assert train.main([*flags, "--profile", str(tmp_path / "profile")]) == 0
    assert capsys.readouterr().err == f"warning: {tmp_path / 'profile'}: the run was too short for a trace\n"


def test_metal_needs_its_switch(tmp_path, monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.delenv("MTL_CAPTURE_ENABLED", raising=False)
    with pytest.raises(ProfileError, match="MTL_CAPTURE_ENABLED=1"):
        Profile(tmp_path)


def test_metal_captures_one_step(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx.metal, "start_capture", lambda path: calls.append(path))
    monkeypatch.setattr(mx.metal, "stop_capture", lambda: calls.append("stop"))
    monkeypatch.setenv("MTL_CAPTURE_ENABLED", "1")
    profile = Profile(tmp_path)
    for number in range(SKIPPED + TRACED):
        with profile.step(number, None):
            calls.append(number)
    path = str(tmp_path / "step.gputrace")
    assert calls == [0, 1, path, 2, "stop", 3, 4] and str(profile.written) == path
