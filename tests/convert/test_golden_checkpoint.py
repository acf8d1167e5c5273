"""The golden checkpoint, converted by command, reproduces the recorded modules and flows."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from models.parity import assert_close
from models.test_golden import FLOWS, MODULES, Recorded
from safetensors.numpy import load_file

from energy_flow_mlx import EnergyFlow, export_torch_checkpoint
from energy_flow_mlx.convert.__main__ import main
from energy_flow_mlx.convert.torch_optimiser import in_torch_order


@pytest.fixture(scope="module", params=["checkpoint", "export"])
def folder(request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder made from checkpoint.pt itself, and from what the export script makes of it."""
    base = tmp_path_factory.mktemp(request.param)
    mapper = ["--mapper", str(golden / "mapper.safetensors")]
    source = golden / "checkpoint.pt"
    if request.param == "export":
        source = base / "export"
        assert export_torch_checkpoint.main([str(golden / "checkpoint.pt"), str(source), *mapper]) == 0
        mapper = []
    tokeniser = ["--tokenizer", str(golden / "tokenizer.json")]
    assert main([str(source), "--to", str(base / "model"), *mapper, *tokeniser, "--set", "spawn_capacity=8"]) == 0
    return base / "model"


def test_modules_and_flows_agree(folder: Path, golden: Path) -> None:
    model = EnergyFlow.from_pretrained(folder)
    recorded: Recorded = load_file(golden / "modules.safetensors")
    for name, (run, _, _) in MODULES.items():
        for output, value in run(model, recorded).items():
            assert_close(f"{name}{output}", value, recorded[f"{name}.out{output}"])
    flows = load_file(golden / "flows.safetensors")
    weights = list(model.flow_parameters().items())
    for name, changes in FLOWS.items():
        again = EnergyFlow(model.config.replace(movement_based_spawn=False).replace(**changes))
        again.load_weights(weights)
        again.eval()
        steps = model.config.lattice_depth if name == "long" else None
        result = again.processor(mx.array(flows["surface"]), steps=steps)
        assert_close(name, result.surface, flows[f"{name}.out"])
        assert int(result.overflowed) == 0


def test_the_tokeniser_comes_along(folder: Path, golden: Path) -> None:
    model = EnergyFlow.from_pretrained(folder)
    texts = json.loads((golden / "texts.json").read_text())
    recorded = load_file(golden / "modules.safetensors")
    length = recorded["text_encoder.input_ids"].shape[1]
    assert_close("encode", model.text_encoder.encode(texts, max_length=length), recorded["text_encoder.out"])


def test_configuration_and_rest_come_along(folder: Path, golden: Path) -> None:
    model = EnergyFlow.from_pretrained(folder)
    torch_config = json.loads((golden / "config.json").read_text())
    ours = model.config.to_dict()
    shared = ours.keys() & torch_config.keys()
    assert len(shared) > 25
    assert {name: ours[name] for name in shared} == {name: torch_config[name] for name in shared}
    assert model.trained_steps == 120
    assert model.config.untrained_parts == "none"
    record = json.loads((folder / "conversion.json").read_text())
    assert record["training"]["epoch"] == 3 and record["training"]["best_loss"] == 0.25
    assert record["torch_config"] == torch_config


def test_the_table_lists_every_source_key(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        str(golden / "checkpoint.pt"),
        "--mapper",
        str(golden / "mapper.safetensors"),
        "--to",
        str(tmp_path / "m"),
        "--verbose",
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "m/conversion.json").read_text())
    source = export_torch_checkpoint.load_checkpoint(golden / "checkpoint.pt")
    for key in [*source.tensors, *source.training["tied"], *load_file(golden / "mapper.safetensors")]:
        leaf = key.rpartition(".")[2] if "coord_encoder" in key or "bias_" in key else key
        assert leaf in printed, key
    actions = {row["action"] for row in record["tensors"]}
    assert actions >= {"as is", "renamed", "split", "folded", "summed", "carried", "tied"}
    assert "without a counterpart in this package: max_steps_z" in printed


def test_the_decoder_is_carried_with_its_t5_configuration(folder: Path) -> None:
    t5 = json.loads((folder / "text_decoder.json").read_text())
    wanted = {
        "vocab_size": 221, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
        "relative_attention_num_buckets": 32, "feed_forward_proj": "relu", "surface_dim": 30, "adapter_dim": 15,
    }  # fmt: skip
    assert {name: t5[name] for name in wanted} == wanted
    assert "eos_token_id" in t5["assumed"]
    tensors = load_file(folder / "text_decoder.safetensors")
    assert len(tensors) == 55 and len(t5["tied"]) == 3 and not set(t5["tied"]) & set(tensors)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2e-3), ("bfloat16", 1.6e-2)])
def test_dtypes(dtype: str, bound: float, golden: Path, tmp_path: Path) -> None:
    arguments = [str(golden / "checkpoint.pt"), "--mapper", str(golden / "mapper.safetensors"), "--dtype", dtype]
    assert main([*arguments, "--without-optimizer", "--to", str(tmp_path / "m")]) == 0
    assert not (tmp_path / "m/optimizer.safetensors").exists()
    model = EnergyFlow.from_pretrained(tmp_path / "m")
    assert {str(array.dtype) for array in mx.load(str(tmp_path / "m/model.safetensors")).values()} == {
        f"mlx.core.{dtype}"
    }
    recorded = load_file(golden / "modules.safetensors")
    surface = np.array(model.mapper.map_to_surface(mx.array(recorded["mapper.in"])).astype(mx.float32))
    error = np.abs(surface - recorded["mapper.out"]).max()
    assert 0 < error < bound * np.abs(recorded["mapper.out"]).max()


def test_the_order_of_torchs_parameters(golden: Path) -> None:
    """A model that never was torch is written in the order in which the trainer's optimiser numbers parameters."""
    order = export_torch_checkpoint.load_checkpoint(golden / "checkpoint.pt").training["key_order"]
    ours = [key for key in order if not key.startswith("text_decoder.")]
    assert in_torch_order(sorted(ours)) == ours


def test_the_golden_checkpoint_comes_back(folder: Path, golden: Path, tmp_path: Path) -> None:
    assert main([str(folder), "--to-torch", "--to", str(tmp_path / "t")]) == 0
    back = torch.load(tmp_path / "t/checkpoint.pt", weights_only=True)
    original = torch.load(golden / "checkpoint.pt", weights_only=True)
    assert back.keys() == original.keys() | {"energy_flow_mlx"}
    assert back["energy_flow_mlx"]["spawn_capacity"] == 8
    for name in ("model_state_dict", "text_encoder_state_dict", "text_decoder_state_dict"):
        assert set(back[name]) == set(original[name])
        for key, value in original[name].items():
            if "coord_encoder" not in key and "gru.bias" not in key:
                assert torch.equal(back[name][key], value), key
    for name in ("epoch", "global_step", "config", "best_loss", "training_history", "scheduler_state_dict"):
        assert back[name] == original[name], name
    assert back["optimizer_state_dict"]["param_groups"] == original["optimizer_state_dict"]["param_groups"]
    assert back["optimizer_state_dict"]["state"].keys() == original["optimizer_state_dict"]["state"].keys()
