"""Memory: checkpointing keeps less, the prediction is near what is measured, and a budget chooses."""

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
    # 1.25 G weights with gradients and moments take 20 GB before the first flow moves: 24 GB do not hold them.
    assert memory.within(full.replace(batch_size=1), 30 * memory.GB)


def test_without_a_budget_a_cuda_device_keeps_room_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_memory_limit", limits.append)
    monkeypatch.setattr(mx, "set_cache_limit", lambda most: None)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    memory.limit()
    assert limits == []
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        mx, "device_info", lambda *device: {"total_memory": 80 * 10**9, "max_recommended_working_set_size": 10**12}
    )
    memory.limit()
    memory.limit(8 * memory.GB)
    assert limits == [64 * 10**9, 8 * 10**9]
