"""The measurements themselves, on a model small enough for tests: what they hold and that they add up, never how fast."""

import math
import time

import numpy as np
import pytest
from metal_cpu import metal_on_cpu
from train.small import small_config

from energy_flow_mlx.benchmark import stages, sweep
from energy_flow_mlx.benchmark.measure import measure_ceilings, measure_model, pipelined, timed
from energy_flow_mlx.benchmark.scenarios import SCENARIOS, measure_scenario
from energy_flow_mlx.benchmark.sweep import AXES, exponent, measure_sweep, sweep_points
from energy_flow_mlx.benchmark.work import product_flops
from energy_flow_mlx.ops import kernel

TIMING = {"warmup": 0, "repeats": 3, "limit_s": 1.0}


def job(what, **changes):
    config = small_config(**{"use_exploration_noise": False, **changes})
    return {"what": what, "config": config.to_dict(), "dropout": False, "save_weights": None, **TIMING}


def test_timing_stops_at_the_limit_but_not_before_three_calls():
    calls = []

    def call():
        calls.append(None)
        time.sleep(0.01)

    assert len(timed(call, warmup=2, repeats=50, limit=0.0)) == 3
    assert len(calls) == 5
    assert len(timed(call, warmup=0, repeats=4, limit=60.0)) == 4


def test_calls_pipelined_are_waited_for_one_late():
    log = []

    def start():
        log.append(f"start {len(log)}")
        return log[-1]

    seconds = pipelined(start, lambda started: log.append(f"finish {started}"), 3)
    assert log == ["start 0", "start 1", "finish start 0", "start 3", "finish start 1", "finish start 3"]
    assert 0 < seconds < 1


@pytest.mark.parametrize("what", ["training", "forward"])
def test_model_is_measured(what):
    result = measure_model(job(what))
    assert len(result["times"]) == 3 and result["seconds"] == np.median(result["times"])
    assert result["first_call_s"] > 0 and result["pipelined_s"] > 0 and result["peak_bytes"] > 0
    assert math.isfinite(result["first_value"])


def test_more_hidden_state_takes_more_memory():
    small, large = (measure_model(job("training", carrier_hidden_size=size))["peak_bytes"] for size in (8, 256))
    assert large > 4 * small


def test_ceilings(monkeypatch):
    result = measure_ceilings({"dtypes": ["float32"], "repeats": 1, "limit_s": 0.0})
    assert result["flops"]["float32"] > 1e8 and result["bytes_per_s"] > 1e7


@pytest.mark.parametrize("changes", [{}, {"compute_dtype": "bfloat16", "use_exploration_noise": True}])
def test_stages_cover_the_products(changes):
    task = job("stages", carrier_num_layers=2, **changes)
    rows = {row["stage"]: row for row in stages.measure_stages(task)["stages"]}
    names = ("mapper", "neuron", "GRU products", "gates", "heads", "advance", "collect", "collector", "text encoder")
    assert list(rows) == [*names, "loss (forward, whole)", "backward (whole)", "optimiser"]
    counted = product_flops(small_config(carrier_num_layers=2))
    for name, part in {"neuron": "neuron", "GRU products": "gru", "heads": "heads", "mapper": "mapper"}.items():
        assert rows[name]["flops"] == pytest.approx(counted[part])
    assert rows["neuron"]["calls"] == 2 and rows["gates"]["calls"] == 4
    assert all(row["bytes"] > 0 for name, row in rows.items() if "whole" not in name)


@pytest.mark.parametrize(("size", "words"), [(16, ""), (8, "carrier_hidden_size=8 is no multiple of 16")])
def test_on_a_gpu_the_step_as_one_kernel_stands_beside_its_parts(monkeypatch, size, words):
    """The harness is the GPU."""
    monkeypatch.setattr(stages, "on_gpu", lambda: True)
    monkeypatch.setattr(kernel, "backend", lambda: "metal")
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "off,+flow_step")
    with metal_on_cpu(checked=False, caches=[kernel.build]):
        result = stages.measure_stages(job("stages", carrier_hidden_size=size, neuron_hidden_dim=4))
    rows = {row["stage"]: row for row in result["stages"]}
    assert result["why_apart"].startswith(words) and bool(result["why_apart"]) == bool(words)
    assert ("neuron to advance, one kernel" in rows) == (not words)
    if not words:
        step, life = (rows[f"{what}, one kernel"] for what in ("neuron to advance", "all moves"))
        assert step["flops"] == life["flops"] == pytest.approx(sum(rows[name]["flops"] for name in ("neuron", "GRU products", "heads")))
        assert (step["calls"], life["calls"]) == (2, 1) and step["bytes"] > life["bytes"] > 0


def test_exponents():
    assert exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert math.isnan(exponent([1], [1])) and math.isnan(exponent([1, 2], [0, 1]))


def test_sweep_changes_one_axis_at_a_time():
    config = small_config(lattice_width=4, lattice_height=4, lattice_depth=8, batch_size=4, carrier_hidden_size=16)
    for axis, value, changed in sweep_points(config):
        field = AXES[axis]
        assert changed == config.replace(**{field: getattr(changed, field)})
        assert value == (changed.surface_dim if axis == "W*H" else getattr(changed, field))
    assert {axis for axis, *_ in sweep_points(config)} == set(AXES)


def test_memory_of_the_flows_grows_no_faster_than_linearly(monkeypatch):
    """Over a factor of 8, its two ends alone. What is there once, and when the CPU's threads free what they used, press the exponent under 1."""
    monkeypatch.setattr(sweep, "FACTORS", (0.25, 2.0))
    config = {"lattice_width": 8, "lattice_height": 8, "lattice_depth": 16, "batch_size": 8, "carrier_hidden_size": 32}
    fits = {fit["axis"]: fit for fit in measure_sweep(job("sweep", **config))["exponents"]}
    for axis in ("B", "W*H", "D"):
        assert 0.3 < fits[axis]["flows peak_bytes"] < 1.2, axis


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenarios_learn(scenario):
    task = {**job("scenario", learning_rate=1e-2), "scenario": scenario, "steps": 30}
    (run, *_) = measure_scenario(task)["runs"]
    assert run["steps"] == 30 and run["seconds"] > 0 and run["peak_bytes"] > 0
    assert run["last_loss"] < 0.9 * run["first_loss"]
