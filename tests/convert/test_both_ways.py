"""Checkpoints of other sizes convert, and the way back loads strictly into torch and agrees."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from convert.checkpoints import ODD, WIDE, Modules, Sizes, run_flows, save
from convert.test_moments import train
from models.parity import assert_close

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.convert.__main__ import main

RNG = np.random.default_rng(0)


def outputs(modules: Modules, sizes: Sizes, surface: np.ndarray, embedding: np.ndarray, ids: np.ndarray) -> dict:
    with torch.no_grad():
        flows = run_flows(modules, sizes, torch.tensor(surface))
        mask = torch.ones(ids.shape)
        return {
            "mapper": modules.input_mapper(torch.tensor(embedding)),
            "flows": flows,
            "collector": modules.output_collector(flows),
            "text": modules.text_encoder(torch.tensor(ids), mask),
        }


def inputs(sizes: Sizes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    surface = RNG.uniform(-1, 1, (3, sizes.width * sizes.height)).astype(np.float32)
    embedding = RNG.standard_normal((3, sizes.embedding)).astype(np.float32)
    return surface, embedding, RNG.integers(0, sizes.vocabulary, (2, 8))


@pytest.mark.parametrize("sizes", [ODD, WIDE], ids=["three layers, odd depth", "one layer, wide"])
def test_there_and_back(sizes: Sizes, tmp_path: Path) -> None:
    modules = Modules(sizes)
    _, adam = train(modules, steps=2)
    checkpoint, mapper = save(modules, sizes, tmp_path / "torch", adam)
    assert main([str(checkpoint), "--mapper", str(mapper), "--to", str(tmp_path / "ours")]) == 0
    model = EnergyFlow.from_pretrained(tmp_path / "ours")
    data = inputs(sizes)
    wanted = outputs(modules, sizes, *data)
    flow = model.processor(mx.array(data[0]), training_step=0)
    assert_close("flows", flow.surface, wanted["flows"])
    assert_close("mapper", model.mapper(mx.array(data[1])), wanted["mapper"])
    assert_close("collector", model.collector(flow.surface), wanted["collector"])
    assert_close("text", model.text_encoder(mx.array(data[2]), mx.ones(data[2].shape)), wanted["text"])

    assert main([str(tmp_path / "ours"), "--to-torch", "--to", str(tmp_path / "back")]) == 0
    loaded = torch.load(tmp_path / "back/checkpoint.pt", weights_only=True)
    others = torch.load(tmp_path / "back/mapper.pt", weights_only=True)
    original = torch.load(checkpoint, weights_only=True)
    back = Modules(sizes, seed=1)
    encoder = {f"text_encoder.{key}": value for key, value in loaded["text_encoder_state_dict"].items()}
    back.load_state_dict({**loaded["model_state_dict"], **encoder, **others}, strict=True)
    for name, value in outputs(back, sizes, *data).items():
        assert_close(name, value, wanted[name])

    # Each tensor, bit for bit, but where the map cannot be inverted.
    before, after = modules.state_dict(), back.state_dict()
    assert list(loaded["model_state_dict"]) == list(original["model_state_dict"])
    for key, value in before.items():
        if key.startswith("neuron.coord_encoder"):
            torch.testing.assert_close(after[key][:3], value[:3], rtol=1e-5, atol=1e-5)
            assert not after[key][3:].any()
        elif "gru.bias" in key:
            other = key.replace("_ih_", "_hh_") if "_ih_" in key else key.replace("_hh_", "_ih_")
            gates = 2 * sizes.hidden
            torch.testing.assert_close(after[key][:gates] + after[other][:gates], value[:gates] + before[other][:gates])
            assert torch.equal(after[key][gates:], value[gates:])
        else:
            assert torch.equal(after[key], value), key
    for name in ("epoch", "global_step", "config", "best_loss", "training_history", "scheduler_state_dict"):
        got = {k: v for k, v in loaded[name].items() if k in original[name]} if name == "config" else loaded[name]
        assert got == original[name], name

    # The optimiser too: torch takes it, and what was not folded is equal.
    fresh = torch.optim.AdamW([p for m in (back.neuron, back.carrier, back.text_encoder) for p in m.parameters()])
    fresh.load_state_dict(loaded["optimizer_state_dict"])
    names = [n for n, _ in back.named_parameters() if n.startswith(("neuron.", "carrier.", "text_encoder."))]
    state = original["optimizer_state_dict"]["state"]
    assert loaded["optimizer_state_dict"]["state"].keys() == state.keys()
    for index, values in loaded["optimizer_state_dict"]["state"].items():
        assert values["step"] == 2
        if "coord_encoder" not in names[index]:
            for kind in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(values[kind], state[index][kind], rtol=1e-6, atol=0, msg=names[index])


def test_settings_without_a_place_in_torch_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four heads: read back as torch's eight, the same weights would compute something else."""
    config = EnergyConfig(
        lattice_width=4, lattice_height=3, lattice_depth=4, input_embedding_dim_from_teacher=10, text_vocab_size=30,
        text_model_dim=16, text_num_heads=4, text_feedforward_dim=24, text_max_length=9, collection="bilinear",
        spawn_capacity=3.0, surface_loss_weight=0.3, training_steps=77, untrained_parts="mapper",
    )  # fmt: skip
    model = EnergyFlow(config)
    model.eval()
    model.save_pretrained(tmp_path / "ours")
    assert main([str(tmp_path / "ours"), "--to-torch", "--to", str(tmp_path / "torch")]) == 0
    assert "no setting for text_num_heads=4 (8 in torch)" in capsys.readouterr().out
    checkpoint, mapper = tmp_path / "torch/checkpoint.pt", tmp_path / "torch/mapper.pt"
    assert "text_num_heads" not in torch.load(checkpoint, weights_only=True)["config"]
    assert main([str(checkpoint), "--mapper", str(mapper), "--to", str(tmp_path / "again")]) == 0
    again = EnergyFlow.from_pretrained(tmp_path / "again")
    assert again.config == config
    ids = mx.array(inputs(ODD)[2])
    assert_close("text", again.text_encoder(ids, mx.ones(ids.shape)), model.text_encoder(ids, mx.ones(ids.shape)))


def test_a_model_that_never_was_torch(tmp_path: Path) -> None:
    sizes = ODD
    config = EnergyConfig(
        lattice_width=4, lattice_height=3, lattice_depth=7, input_embedding_dim_from_teacher=10, carrier_hidden_size=12,
        carrier_num_layers=3, neuron_hidden_dim=5, neuron_output_dim=9, text_vocab_size=30, text_max_positions=20,
        text_max_length=8, text_model_dim=16, text_num_heads=8, text_feedforward_dim=24, text_num_layers=3,
    )  # fmt: skip
    model = EnergyFlow(config)
    model.eval()
    model.save_pretrained(tmp_path / "ours")
    assert main([str(tmp_path / "ours"), "--to-torch", "--to", str(tmp_path / "torch")]) == 0
    loaded = torch.load(tmp_path / "torch/checkpoint.pt", weights_only=True)
    encoder = {f"text_encoder.{key}": value for key, value in loaded["text_encoder_state_dict"].items()}
    modules = Modules(sizes)
    others = torch.load(tmp_path / "torch/mapper.pt", weights_only=True)
    modules.load_state_dict({**loaded["model_state_dict"], **encoder, **others}, strict=True)
    data = inputs(sizes)
    wanted = outputs(modules, sizes, *data)
    assert_close("flows", model.processor(mx.array(data[0])).surface, wanted["flows"])
    assert_close("mapper", model.mapper(mx.array(data[1])), wanted["mapper"])
    assert main([str(tmp_path / "torch/checkpoint.pt"), "--mapper", str(tmp_path / "torch/mapper.pt"), "--to", str(tmp_path / "again")]) == 0  # fmt: skip
    again = mx.load(str(tmp_path / "again/model.safetensors"))
    for name, value in mx.load(str(tmp_path / "ours/model.safetensors")).items():
        assert np.allclose(np.array(again[name]), np.array(value), rtol=1e-5, atol=1e-6), name
