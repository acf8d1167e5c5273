"""Memory: checkpointing keeps less, the prediction is near what is measured, and a budget chooses."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from train.small import small_config, small_data, small_model

from energy_flow_mlx import ConfigError, EnergyConfig, EnergyFlow, embed, evaluate, upload
from energy_flow_mlx.benchmark import measure
from energy_flow_mlx.train import memory
from energy_flow_mlx.train.optimiser import make_optimiser, named_arrays
from energy_flow_mlx.train.step import TrainStep

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
    config = EnergyConfig.preset("reference-experiment")
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
    full = EnergyConfig.preset("reference-optimized").replace(compute_dtype="bfloat16")
    assert memory.within(full, 141 * memory.GB).batch_size == 32
    # 1.25 G weights and Adam's moments are 15 GB; gradients in 16 bits, and the flows come and go.
    assert memory.within(full.replace(batch_size=1), 24 * memory.GB)
    with pytest.raises(ConfigError, match="memory_budget=24"):
        memory.within(full.replace(batch_size=1, compute_dtype="float32"), 24 * memory.GB)


def test_sums_over_micro_batches_and_16_bit_copies_are_counted() -> None:
    for dtype, single, several in (("float32", 16, 20), ("bfloat16", 16, 20)):
        config = EnergyConfig.preset("reference-optimized").replace(compute_dtype=dtype)
        for count, bytes_each in ((1, single), (4, several)):
            found = memory.predicted(config.replace(gradient_accumulation_steps=count)).weights
            assert found == pytest.approx(bytes_each * memory.parameters(config)), (dtype, count)


def test_the_update_counts_where_it_takes_more_than_the_flows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "off")  # by NumPy the flows take more
    config = EnergyConfig.preset("reference-optimized").replace(compute_dtype="bfloat16", batch_size=1, gradient_checkpointing=True)
    found = memory.predicted(config)
    small = memory.predicted(config.replace(lattice_depth=2))
    assert small.weights + small.flows < small.update == small.total
    assert found.update == small.update == 14.0 * memory.parameters(config) + 12 * 20_000 * 20_000
    assert memory.largest_update(EnergyConfig.preset("reference-debug")) == 12.0 * EnergyConfig.preset("reference-debug").text_vocab_size * 256


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The memory limits that are set, on an H100 of 80 GB."""
    found: list[int] = []
    monkeypatch.setattr(mx, "set_memory_limit", found.append)
    monkeypatch.setattr(mx, "set_cache_limit", lambda most: None)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    device(monkeypatch, 80, (9, 0))
    monkeypatch.setenv(memory.VARIABLE, "1")  # so that the test's own values go at its end
    monkeypatch.delenv(memory.VARIABLE)
    return found


def device(monkeypatch: pytest.MonkeyPatch, size: int, capability: tuple[int, int]) -> None:
    facts = {
        "total_memory": size * 10**9, "compute_capability_major": capability[0], "compute_capability_minor": capability[1],
        "max_recommended_working_set_size": 10**12,
    }  # fmt: skip
    monkeypatch.setattr(mx, "device_info", lambda *device: facts)


def test_the_limit_leaves_room_for_the_largest_launch(limits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    config = EnergyConfig.preset("reference-optimized")
    launch = memory.largest_update(config)
    assert launch == 12 * 20_000 * 20_000
    memory.limit(config)
    memory.limit(config.replace(memory_budget=32.0))
    memory.limit(config.replace(memory_budget=8.0))
    assert limits == [64 * 10**9 - launch, 32 * 10**9 - launch, 4 * 10**9]
    limits.clear()
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    memory.limit(config)
    assert limits == []
    memory.limit(config.replace(memory_budget=32.0))
    assert limits == [32 * 10**9 - launch]
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda *device: {})
    memory.limit(config)
    assert limits == [32 * 10**9 - launch]  # a device that does not say its size is left alone


def test_command_buffers_are_small_where_results_are_large(limits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "on")
    large = EnergyConfig.preset("reference-optimized").replace(compute_dtype="bfloat16", batch_size=4)
    assert memory.queued(large) == 100 * 10 * 4 * 15_000 * 1024 * 2  # MLX's own number
    memory.limit(EnergyConfig.preset("reference-debug"))
    assert os.environ.pop(memory.VARIABLE) == "30"
    memory.limit(large)
    first = int(os.environ.pop(memory.VARIABLE))
    memory.limit(large.replace(memory_budget=memory.predicted(large).total / memory.GB))
    assert 1 == int(os.environ.pop(memory.VARIABLE)) < first < 20
    monkeypatch.setenv(memory.VARIABLE, "7")
    memory.limit(large)
    assert os.environ[memory.VARIABLE] == "7"
    assert memory.queued(large) == 7 * 10 * 4 * 15_000 * 1024 * 2


def test_command_buffers_never_grow(limits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where MLX's own are smaller, as on most cards, they stay."""
    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "on")
    experiment = EnergyConfig.preset("reference-experiment").replace(compute_dtype="bfloat16")
    device(monkeypatch, 40, (8, 0))
    assert memory.operations_a_buffer(experiment, 32 * memory.GB) > 20
    memory.limit(experiment)
    assert memory.VARIABLE not in os.environ
    device(monkeypatch, 40, (9, 0))
    memory.limit(experiment)
    assert int(os.environ[memory.VARIABLE]) == 30 < memory.operations_a_buffer(experiment, 32 * memory.GB)


@pytest.mark.parametrize(
    ("preset", "dtype", "batch_size", "chosen"),
    [
        ("tiny", "float32", 16, "30"),
        ("debug", "float32", 32, "30"),
        ("debug", "bfloat16", 32, "30"),
        ("debug", "bfloat16", 128, "4"),
        ("experiment", "bfloat16", 1, "30"),
        ("experiment", "bfloat16", 16, "8"),
        ("experiment", "float32", 16, "4"),
        ("optimized", "bfloat16", 1, "5"),
        ("optimized", "bfloat16", 4, "2"),
        ("optimized", "bfloat16", 64, "2"),
    ],
)
def test_evaluation_has_small_buffers_where_a_pass_is_large(
    preset: str, dtype: str, batch_size: int, chosen: str, limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EnergyConfig.preset(preset).replace(compute_dtype=dtype)
    memory.limit_evaluation(config, batch_size)
    assert os.environ.get(memory.VARIABLE) == chosen
    assert limits == []  # of memory: what is allocated is not held back
    monkeypatch.setenv(memory.VARIABLE, "50")
    memory.limit_evaluation(config, batch_size)
    assert os.environ[memory.VARIABLE] == "50"


def test_evaluation_never_has_larger_buffers_and_leaves_other_devices_alone(limits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    config = EnergyConfig.experiment()
    device(monkeypatch, 40, (8, 0))
    memory.limit_evaluation(config, 6)
    assert memory.VARIABLE not in os.environ
    monkeypatch.setattr(mx.cuda, "is_available", lambda: False)
    memory.limit_evaluation(config, 64)
    assert memory.VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("command", "arguments", "chosen"),
    [
        (evaluate.main, ["RUN"], "8"),
        (evaluate.main, ["RUN", "--batch-size", "32"], "4"),
        (evaluate.main, ["RUN", "--ablation"], None),
        (evaluate.main, ["RUN", "--mlp-baseline"], None),
        (embed.main, ["RUN", "-", "--to", "x.npy", "--batch-size", "32"], "4"),
        (upload.main, ["RUN", "me/model"], "8"),
    ],
)
def test_commands_that_only_evaluate_choose_buffers_before_the_model_is_read(
    command: Callable[[list[str]], int], arguments: list[str], chosen: str | None, limits: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str | None] = []

    def read(folder: Path) -> EnergyFlow:
        found.append(os.environ.get(memory.VARIABLE))
        raise ValueError("read")

    monkeypatch.setattr(EnergyFlow, "from_pretrained", read)
    EnergyConfig.experiment().to_json(tmp_path / "config.json")
    (tmp_path / "model.safetensors").touch()
    assert command([str(tmp_path) if argument == "RUN" else argument for argument in arguments]) == 2
    assert found == [chosen]


@pytest.mark.parametrize("what", ["forward", "training"])
def test_the_benchmark_measures_a_forward_pass_as_evaluation_runs_it(what: str, limits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def made(config: EnergyConfig) -> None:
        raise ValueError("made")

    monkeypatch.setenv("ENERGY_FLOW_KERNELS", "on")
    monkeypatch.setattr(measure, "make_batches", made)
    device(monkeypatch, 40, (9, 0))
    config = EnergyConfig.experiment()
    with pytest.raises(ValueError, match="made"):
        measure.measure_model({"what": what, "config": config.to_dict()})
    assert int(os.environ[memory.VARIABLE]) == (8 if what == "forward" else 30) < memory.operations_a_buffer(config, 32 * memory.GB)
    assert len(limits) == 1  # of memory, set for both


def test_nothing_queues_without_cuda() -> None:
    if not mx.cuda.is_available():
        assert memory.queued(EnergyConfig.preset("reference-experiment")) == 0


@on_cpu
def test_a_run_beyond_the_address_space_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EnergyConfig.debug()
    step, beside = memory.predicted(config).total, memory.LIBRARIES + memory.A_CORE * os.cpu_count()
    for room, fits in ((None, True), (step + beside, True), (step + beside - 1e6, False)):
        monkeypatch.setattr(memory, "_address_room", lambda room=room: room)
        if fits:
            memory.check_room(config)
        else:
            with pytest.raises(ConfigError, match=rf"a step takes about {step / memory.GB:.2f} GB and the libraries .* may take .* GB more \(ulimit -v\).*batch_size=32"):
                memory.check_room(config)


@on_cpu
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the system does not tell a process its size in /proc")
def test_a_limit_of_the_shell_is_heard_before_anything_is_made(tmp_path: Path) -> None:
    """Without the check this run ends by a signal: MLX does not look whether it got the memory that it writes to."""
    command = f"ulimit -v 2500000; exec {sys.executable} -m energy_flow_mlx.train --preset debug --train-pairs 40 --out {tmp_path / 'run'}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert ended.returncode == 2 and ended.stderr.startswith("error: a step takes about "), ended.stderr
    assert not (tmp_path / "run").exists()
