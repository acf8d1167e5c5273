"""Training goes on after a conversion: the moments and the next AdamW step, held against torch's."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from convert.checkpoints import ODD, RATE, WIDE, Modules, Sizes, optimiser, save

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.convert.__main__ import main
from energy_flow_mlx.convert.torch_keys import from_torch
from energy_flow_mlx.train.checkpoint import load
from energy_flow_mlx.train.optimiser import freeze_unreached, make_optimiser, named_arrays

FLOWS, TEXTS, TOKENS = 6, 2, 5
FOLDED = ("neuron.coord_encoder.weight", "neuron.coord_encoder.bias")


def batch(modules: Modules, step: int) -> dict[str, np.ndarray]:
    """Inputs and cotangents of step `step`."""
    rng = np.random.default_rng(step)
    sizes = {"position": (FLOWS, 3), "energy": (FLOWS, 1), "d_energy": (FLOWS, 1), "d_next": (FLOWS, 3)}
    sizes["hidden"] = (modules.carrier.gru.num_layers, FLOWS, modules.carrier.gru.hidden_size)
    sizes["d_text"] = (TEXTS, modules.input_mapper.positional_encoding.numel())
    data = {name: rng.uniform(-0.4, 0.4, shape).astype(np.float32) for name, shape in sizes.items()}
    return data | {"ids": rng.integers(0, modules.text_encoder.token_embedding.num_embeddings, (TEXTS, TOKENS))}


def torch_loss(modules: Modules, data: dict[str, np.ndarray]) -> torch.Tensor:
    t = {name: torch.tensor(value) for name, value in data.items()}
    energy, after, *_ = modules.carrier(
        modules.neuron(t["position"], t["energy"]), t["energy"], t["hidden"], t["position"]
    )
    text = modules.text_encoder(t["ids"], torch.ones(t["ids"].shape))
    return (energy * t["d_energy"]).sum() + (after * t["d_next"]).sum() + (text * t["d_text"]).sum()


def our_loss(model: EnergyFlow, data: dict[str, np.ndarray]) -> mx.array:
    a = {name: mx.array(value) for name, value in data.items()}
    out = model.carrier(model.neuron(a["position"], a["energy"]), a["energy"], a["hidden"], a["position"])
    text = model.text_encoder(a["ids"], mx.ones(a["ids"].shape))
    return (out.energy * a["d_energy"]).sum() + (out.next_position * a["d_next"]).sum() + (text * a["d_text"]).sum()


def train(
    modules: Modules, steps: int, adam: torch.optim.AdamW | None = None, first: int = 0
) -> tuple[list, torch.optim.AdamW]:
    """Steps of AdamW; returns the gradients of coord_encoder at each, and the optimiser."""
    adam = adam or optimiser(modules)
    gradients = []
    for step in range(first, first + steps):
        adam.zero_grad()
        torch_loss(modules, batch(modules, step)).backward()
        layer = modules.neuron.coord_encoder
        gradients.append((layer.weight.grad[:3].double().numpy().copy(), layer.bias.grad[:3].double().numpy().copy()))
        adam.step()
    return gradients, adam


def image(modules: Modules, model: EnergyFlow) -> dict[str, np.ndarray]:
    """Torch's weights under the key map."""
    state = {key: value.detach().numpy().copy() for key, value in modules.state_dict().items()}
    return {name: item.value.astype(np.float64) for name, item in from_torch(state, model.config).items()}


@pytest.mark.parametrize("sizes", [ODD, WIDE], ids=["odd", "wide"])
def test_the_next_step(sizes: Sizes, tmp_path: Path, golden: Path) -> None:
    modules = Modules(sizes)
    gradients, adam = train(modules, steps=4)
    checkpoint, mapper = save(modules, sizes, tmp_path, adam)
    assert main([str(checkpoint), "--mapper", str(mapper), "--to", str(tmp_path / "ours")]) == 0
    model = EnergyFlow.from_pretrained(tmp_path / "ours")
    freeze_unreached(model, model.config)
    ours = make_optimiser(model.config)
    state = load(tmp_path / "ours", model, ours)  # as --resume does
    assert state.step == 7 and state.plateau.waited == 3 and state.plateau.factor == pytest.approx(1)
    assert float(ours.learning_rate) == pytest.approx(RATE) and int(ours.step) == 4

    # The moments of the folded layer, against the chain rule applied to each gradient.
    span = np.array([sizes.width - 1, sizes.height - 1, sizes.depth - 1])
    first, second = np.zeros((3, 3)), np.zeros((3, 3))
    for weight, bias in gradients:
        folded = (weight + bias[:, None]) * span / 2
        first, second = 0.9 * first + 0.1 * folded, 0.999 * second + 0.001 * folded**2
    held = named_arrays(ours.state)
    np.testing.assert_allclose(np.array(held[f"{FOLDED[0]}.m"]), first, rtol=1e-4, atol=1e-6)
    estimate = np.array(held[f"{FOLDED[0]}.v"], dtype=np.float64)
    assert (estimate >= second / 2 * (1 - 1e-4)).all(), "a step would be more than the square root of 2 too long"

    before, torch_before = named_arrays(model.parameters()), image(modules, model)
    before = {name: np.array(value, dtype=np.float64) for name, value in before.items()}
    data = batch(modules, 4)
    _, gradient = nn.value_and_grad(model, our_loss)(model, data)
    ours.update(model, gradient)
    train(modules, steps=1, adam=adam, first=4)
    after, torch_after = named_arrays(model.parameters()), image(modules, model)
    compared, entries = 0, 0
    for name, wanted in torch_after.items():
        if name.startswith(("mapper.", "collector.", "carrier.position_memory", "carrier.history_fusion")):
            continue  # not in torch's optimiser, or not reached
        step, torch_step = np.array(after[name], dtype=np.float64) - before[name], wanted - torch_before[name]
        if name in FOLDED:
            assert np.abs(step - torch_step).max() < 8 * RATE, name
            continue
        # A gradient that is 0 but for rounding (a key's bias shifts all scores alike) has no step to compare.
        real = np.sqrt(np.array(held[f"{name}.v"], dtype=np.float64)) > 1e-6
        if name.startswith("carrier.gru.") and name.endswith(".b"):
            gates = np.arange(step.size) < 2 * sizes.hidden
            decay = -RATE * model.config.weight_decay * before[name]
            torch_step = np.where(gates, (torch_step - decay) / 2 + decay, torch_step)
        np.testing.assert_allclose(step[real], torch_step[real], rtol=0, atol=2e-3 * RATE, err_msg=name)
        compared, entries = compared + real.sum(), entries + real.size
    assert compared > 0.8 * entries


def test_parameters_that_have_seen_different_numbers_of_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = Modules(ODD)
    _, adam = train(modules, steps=1)
    adam.state[next(modules.neuron.parameters())]["step"] += 5
    checkpoint, mapper = save(modules, ODD, tmp_path, adam)
    arguments = [str(checkpoint), "--mapper", str(mapper), "--to", str(tmp_path / "m")]
    assert main(arguments) == 2
    assert "different step counts" in capsys.readouterr().err
    assert main([*arguments, "--without-optimizer"]) == 0
