"""Sound files whose contents do not fit: a refusal that names tensors and fields, or a note where it is no fault."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.convert.__main__ import main
from energy_flow_mlx.convert.decoder import recover_t5_config

Refused = Callable[..., str]


def change(export: Path, edit: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> None:
    state = load_file(export / name)
    edit(state)
    save_file(state, export / name)


def change_config(export: Path, **values: object) -> None:
    config = json.loads((export / "config.json").read_text()) | values
    (export / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float, export: Path, refused: Refused) -> None:
    change(export, lambda state: state["carrier.gru.weight_hh_l1"].view(-1)[3].fill_(value))
    assert "NaN or infinity in carrier.gru.weight_hh_l1" in refused(export)


def test_moments_that_are_not_finite_or_negative(export: Path, refused: Refused) -> None:
    key = "neuron.layers.0.weight.exp_avg_sq"
    change(export, lambda state: state[key].view(-1)[0].fill_(-1.0), "optimizer.safetensors")
    assert "neuron.layers.0.weight: exp_avg_sq is negative" in refused(export)
    change(export, lambda state: state[key].view(-1)[0].fill_(float("nan")), "optimizer.safetensors")
    assert f"NaN or infinity in {key}" in refused(export)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sources_of_other_precision(
    dtype: torch.dtype, export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(export, lambda state: state.update({key: value.to(dtype) for key, value in state.items()}))
    assert main([str(export), "--to", str(tmp_path / "m")]) == 0
    printed = capsys.readouterr().out
    assert ("tensors, converted to float32 without loss" in printed) == (dtype != torch.float64)
    state = load_file(export / "model.safetensors")
    ours = mx.load(str(tmp_path / "m/model.safetensors"))
    wanted = state["carrier.gru.weight_ih_l0"].float().numpy()
    assert np.array_equal(np.array(ours["carrier.gru.0.Wx"]), wanted)


def test_values_too_large_for_float16(export: Path, refused: Refused) -> None:
    change(export, lambda state: state["neuron.layers.6.bias"].view(-1)[0].fill_(1e5))
    assert "neuron.layers.6.bias" in refused(export, "--dtype", "float16")


@pytest.mark.parametrize(
    "key",
    ["neuron.layers.3.weight", "neuron.coord_encoder.bias", "carrier.gru.bias_hh_l1", "input_mapper.energy_scale",
     "text_encoder.transformer_encoder.layers.1.self_attn.in_proj_bias"],
)  # fmt: skip
def test_a_missing_key(key: str, export: Path, refused: Refused) -> None:
    change(export, lambda state: state.pop(key))
    assert f"missing: {key}" in refused(export, "--init-missing", "--without-optimizer")


@pytest.mark.parametrize(
    "key", ["neuron.extra.weight", "carrier.gru.weight_ih_l0_reverse", "scaler.scale", "mapper.energy_scale"]
)
def test_a_key_that_is_left_over(key: str, export: Path, refused: Refused) -> None:
    change(export, lambda state: state.update({key: torch.zeros(2)}))
    assert f"does not fit: unknown: {key}" in refused(export)


def test_shapes_that_do_not_fit(export: Path, refused: Refused) -> None:
    change(export, lambda state: state.update({"carrier.position_memory.weight": torch.zeros(3, 14)}))
    error = refused(export, "--without-optimizer")
    assert "carrier.position_memory.weight has shape (3, 14), the configuration requires (3, 15)" in error


def test_weights_that_are_whole_numbers(export: Path, refused: Refused) -> None:
    change(export, lambda state: state.update({"neuron.layers.0.bias": torch.zeros(5, dtype=torch.int32)}))
    assert "neuron.layers.0.bias holds int32, accepted are floating-point numbers" in refused(export)


def test_a_model_folder_as_the_source(export: Path, tmp_path: Path, refused: Refused) -> None:
    assert main([str(export), "--to", str(tmp_path / "m")]) == 0
    assert "is a model folder of this package already" in refused(tmp_path / "m")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("carrier_hidden_size", 16, "carrier_hidden_size is 16 in the configuration, 12 in carrier.gru.weight_hh_l0"),
        ("carrier_num_layers", 2, "carrier_num_layers is 2 in the configuration, 3 in carrier.gru.weight_hh_l2"),
        ("lattice_width", 6, "lattice_width is 6 in the configuration, 4 in input_mapper.positional_encoding"),
        ("output_embedding_dim_to_teacher", 11, "output_embedding_dim_to_teacher is 11"),
        ("input_cells", 13, "input_cells is 13"),
        ("lattice_depth", None, "lattice_depth missing"),
        ("learning_rate", -1, "learning_rate=-1"),
        ("lattice_height", "five", "lattice_height='five': accepted are whole numbers"),
    ],
)
def test_a_configuration_that_disagrees(field: str, value: object, words: str, export: Path, refused: Refused) -> None:
    change_config(export, **{field: value})
    assert words in refused(export)


def test_a_missing_mapper(
    files: tuple[Path, Path], tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(files[0])
    assert "mapper, collector absent" in error and "--init-missing" in error
    assert main([str(files[0]), "--to", str(tmp_path / "m"), "--init-missing"]) == 0
    assert "untrained, initialised at random: mapper, collector" in capsys.readouterr().out
    model = EnergyFlow.from_pretrained(tmp_path / "m")
    assert model.config.untrained_parts == "mapper,collector"
    assert json.loads((tmp_path / "m/conversion.json").read_text())["untrained"] == ["mapper", "collector"]
    assert main([str(files[0]), "--to", str(tmp_path / "n"), "--init-missing"]) == 0
    one, two = (mx.load(str(tmp_path / name / "model.safetensors")) for name in "mn")
    assert all(np.array_equal(np.array(one[name]), np.array(two[name])) for name in one), "not seeded"


def test_a_mapper_file_with_other_keys(files: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    torch.save({"input_mapper.energy_scale": torch.ones(1), "decoder.a": torch.ones(1)}, tmp_path / "m.pt")
    assert "unknown keys decoder.a" in refused(files[0], "--mapper", tmp_path / "m.pt")


def test_a_mapper_given_twice(files: tuple[Path, Path], export: Path, refused: Refused) -> None:
    assert "input_mapper.energy_bias" in refused(export, "--mapper", files[1])


def test_a_folder_that_is_not_empty(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    assert main([str(export), "--to", str(target)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in target.iterdir()] == ["thesis.txt"]
    # What a killed write left behind is no obstacle.
    (tmp_path / "cut/.incoming").mkdir(parents=True)
    assert main([str(export), "--to", str(tmp_path / "cut")]) == 0


def test_the_way_back_refuses_too(export: Path, tmp_path: Path, refused: Refused) -> None:
    assert main([str(export), "--to", str(tmp_path / "m")]) == 0
    assert "--mapper cannot be used with --to-torch" in refused(tmp_path / "m", "--to-torch", "--mapper", "x.pt")
    data = (tmp_path / "m/model.safetensors").read_bytes()
    (tmp_path / "m/model.safetensors").write_bytes(data[:-10])
    assert "cut off" in refused(tmp_path / "m", "--to-torch")


def test_decoders_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="unknown keys lm_head.weight"):
        recover_t5_config({"lm_head.weight": (3, 3)})
    with pytest.raises(ValueError, match=r"t5_model\.shared\.weight"):
        recover_t5_config({"surface_adapter.0.weight": (15, 30)})
