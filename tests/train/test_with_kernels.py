"""The model trains the same with its kernels forced on (Metal on this CPU, or the GPU itself) and off."""

import numpy as np
import pytest
from metal_cpu import metal_on_cpu
from ops.kernel_parity import HARNESS, backends
from train.small import small_config, small_data, small_model

from energy_flow_mlx.data.source import EpochOrder
from energy_flow_mlx.ops import kernel
from energy_flow_mlx.ops.kernel import VARIABLE, build, folders
from energy_flow_mlx.train.loss import number
from energy_flow_mlx.train.optimiser import make_optimiser, named_arrays
from energy_flow_mlx.train.step import TrainStep, micro_batches

STEPS = 3
SPAWNING = {"movement_based_spawn": True, "spawn_movement_threshold_ratio": 0.03, "max_spawn_per_step": 2}


def train(**changes: object) -> tuple[list[float], dict[str, np.ndarray], int]:
    """Losses, parameters after STEPS steps, and the children that were born."""
    config = small_config(**changes)
    model = small_model(config)
    optimiser = make_optimiser(config)
    # Where a gradient is rounding alone (the keys' bias adds the same to all scores of a softmax), eps 1e-8 lets AdamW scale it up.
    optimiser.eps = 1e-5
    step = TrainStep(model, optimiser, config)
    data = small_data(config).train
    order = EpochOrder(len(data), config.batch_size, seed=0)
    losses, born = [], 0
    for index in range(STEPS):
        metrics = step(index, micro_batches(data, order, index, 1), 1e-3)
        losses.append(number(metrics.loss))
        born += int(number(metrics.parts.ended)) - config.batch_size * config.surface_dim
    return losses, {name: np.array(array) for name, array in named_arrays(model.parameters()).items()}, born


@backends
@pytest.mark.parametrize(
    "changes",
    [{}, {"collection": "bilinear", **SPAWNING}, {"gradient_checkpointing": True, "carrier_num_layers": 2, **SPAWNING}],
    ids=["plain", "bilinear and children", "checkpointed"],
)
def test_training_is_the_same_with_kernels(
    where: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    losses, parameters, born = train(**changes)
    assert not changes or born > 0
    monkeypatch.setenv(VARIABLE, "on")
    if where == HARNESS:
        monkeypatch.setattr(kernel, "backend", lambda: "metal")
        with metal_on_cpu(caches=[build]) as session:
            own_losses, own_parameters, own_born = train(**changes)
        (folder,) = (folder for folder in folders() if folder.is_dir())
        ops = {source.stem for source in folder.glob("*.metal")}
        names = [launch.name for launch in session.launches]
        idle = {op for op in ops if not any(name.startswith(f"custom_kernel_{op}_") for name in names)}
        assert idle == {"flow_step"} | (set() if "movement_based_spawn" in changes else {"spawn", "inherit"})
    else:
        own_losses, own_parameters, own_born = train(**changes)
    assert own_born == born
    np.testing.assert_allclose(own_losses, losses, rtol=1e-5)
    for name, wanted in parameters.items():
        np.testing.assert_allclose(own_parameters[name], wanted, atol=1e-5 if where == HARNESS else 1e-4, err_msg=name)


def test_training_gives_the_same_bits_in_any_order_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "on")
    monkeypatch.setattr(kernel, "backend", lambda: "metal")
    runs = []
    for seed in (0, 1):
        with metal_on_cpu(caches=[build], seed=seed):
            runs.append(train(collection="bilinear", **SPAWNING))
    assert runs[0][0] == runs[1][0]
    for name, wanted in runs[0][1].items():
        np.testing.assert_array_equal(runs[1][1][name], wanted, err_msg=name)
