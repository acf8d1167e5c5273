"""Memory: checkpointing keeps less, the prediction is near what is measured, and a budget chooses."""

import os

import mlx.core as mx
import numpy as np
import pytest
from training.small import small_config, small_data, small_model

from energy_flow_mlx import ConfigError, EnergyConfig
from energy_flow_mlx.training import memory
from energy_flow_mlx.training.optimiser import make_optimiser, named_arrays
from energy_flow_mlx.training.step import TrainStep

on_cpu = pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.gpu, reason="a GPU's peak includes what is in flight; the CPU's is exact"
)
WIDE = {"lattice_width": 8, "lattice_height": 8, "lattice_depth": 32, "carrier_hidden_size": 32, "batch_size": 16}


def measured(config: EnergyConfig) -> int:
    """Peak bytes of a training step, the second one."""
    model, data = small_model(config), small_data(config).train
    optimiser = make_optimiser(config)
    optimiser.init(model.trainable_parameters())
    step, batch = TrainStep(model, optimiser, config), data.batch(np.arange(config.batch_size))
    step(0, [batch], 1e-3)
    mx.clear_cache()
    mx.reset_peak_memory()
    step(1, [batch], 1e-3)
    return mx.get_peak_memory()


@on_cpu
def test_checkpointing_keeps_a_fraction_and_the_prediction_is_near() -> None:
    plain = small_config(**WIDE)
    checkpointed = plain.replace(gradient_checkpointing=True)
    whole, part = measured(plain), measured(checkpointed)
    assert part < 0.4 * whole
    assert memory.predicted(plain).total == pytest.approx(whole, rel=0.4)
    assert memory.predicted(checkpointed).total == pytest.approx(part, rel=0.4)


def test_parameters_are_counted() -> None:
    config = EnergyConfig.tiny()
    counted = sum(array.size for array in named_arrays(small_model(config).parameters()).values())
    assert memory.parameters(config) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_a_budget_chooses_checkpointing(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", kernels)
    config = EnergyConfig.experiment()
    ample = memory.within(config, 1e12)
    assert not ample.gradient_checkpointing
    tight = memory.within(config, 0.5 * memory.predicted(ample).total)
    assert tight.gradient_checkpointing
    assert memory.predicted(tight).total <= 0.5 * memory.predicted(ample).total
    assert (tight.checkpoint_steps > 1) == (kernels == "on")
    with pytest.raises(ConfigError, match=r"memory_budget=0.1 .* still takes .* GB; lower batch_size=16"):
        memory.within(config, 0.1 * memory.GB)


def test_full_size_training_fits_the_cards_it_is_meant_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "on")
    full = EnergyConfig.optimized().replace(compute_dtype="bfloat16")
    assert memory.within(full, 141 * memory.GB).batch_size == 32
    # 1.25 G weights and Adam's moments are 15 GB; gradients in 16 bits, and the flows come and go.
    assert memory.within(full.replace(batch_size=1), 24 * memory.GB)
    with pytest.raises(ConfigError, match="memory_budget=24"):
        memory.within(full.replace(batch_size=1, compute_dtype="float32"), 24 * memory.GB)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The memory limits that are set, on a device of 80 GB."""
    found: list[int] = []
    monkeypatch.setattr(mx, "set_memory_limit", found.append)
    monkeypatch.setattr(mx, "set_cache_limit", lambda most: None)
    facts = {"total_memory": 80 * 10**9, "max_recommended_working_set_size": 10**12}
    monkeypatch.setattr(mx, "device_info", lambda *device: facts)
    monkeypatch.delenv(memory.OPERATIONS, raising=False)
    return found


def test_without_a_budget_a_cuda_device_keeps_room_for_the_driver(
    limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EnergyConfig.tiny()
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    memory.hold(config)
    assert limits == []
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    memory.hold(config)
    assert limits == [pytest.approx(64e9, rel=1e-3)]
    memory.hold(config.replace(memory_budget=8.0))
    assert limits[-1] == pytest.approx(8e9, rel=1e-3)


def test_commits_are_small_where_results_are_large(limits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "on")
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    large = EnergyConfig.optimized().replace(compute_dtype="bfloat16", batch_size=4)
    memory.hold(EnergyConfig.debug())
    assert memory.OPERATIONS not in os.environ  # MLX's own number
    memory.hold(large)
    first = int(os.environ.pop(memory.OPERATIONS))
    memory.hold(large.replace(memory_budget=memory.predicted(large).total / memory.GB))
    assert 1 == int(os.environ[memory.OPERATIONS]) < first < memory.OPERATIONS_A_COMMIT
    monkeypatch.setenv(memory.OPERATIONS, "7")
    memory.hold(large)
    assert os.environ[memory.OPERATIONS] == "7"
