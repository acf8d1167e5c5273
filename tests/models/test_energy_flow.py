"""The whole model: its call, its folder, and refusals that name the argument."""

import json
import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from models.small import SMALL, lively_model

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.text.tokeniser import WordPieceTokeniser

TEXTS = ["a small red cat", "two cats", "", "red red red"]


def tokeniser() -> WordPieceTokeniser:
    return WordPieceTokeniser.train([*TEXTS[:2], "empty"], 60)


def test_call_is_mapper_flows_collector() -> None:
    model = lively_model()
    x = mx.random.normal((3, 10))
    out = model(x)
    flow = model.processor(model.mapper.map_to_surface(x))
    assert out.embedding.shape == (3, 10) and out.surface.shape == (3, 12)
    assert np.array_equal(np.array(out.surface), np.array(flow.surface))
    assert np.array_equal(np.array(out.embedding), np.array(model.collector.collect(flow.surface)))
    longer = model(x, steps=6)
    assert int(longer.flow.projected) <= int(out.flow.projected)
    assert not np.array_equal(np.array(longer.surface), np.array(out.surface))


def test_a_trained_model_keeps_the_scale_its_training_ended_with() -> None:
    model = lively_model(displacement_scale=3.0, displacement_warmup_steps=0, displacement_scale_decay=0.5)
    x = mx.random.normal((2, 10))
    early = np.array(model(x).surface)
    model.trained_steps = 500
    assert np.array_equal(np.array(model(x).surface), np.array(model(x, training_step=500).surface))
    assert not np.array_equal(np.array(model(x).surface), early)


def test_save_and_load(tmp_path: Path) -> None:
    model = lively_model(text_vocab_size=60)
    model.text_encoder.tokeniser = tokeniser()
    model.trained_steps = 12
    model.save_pretrained(tmp_path / "run")
    loaded = EnergyFlow.from_pretrained(tmp_path / "run")
    assert loaded.config == model.config and loaded.trained_steps == 12 and not loaded.training
    for (name, ours), (same, theirs) in zip(
        tree_flatten(model.parameters()), tree_flatten(loaded.parameters()), strict=True
    ):
        assert name == same and np.array_equal(np.array(ours), np.array(theirs)), name
    x = mx.random.normal((2, 10))
    assert np.array_equal(np.array(model(x).embedding), np.array(loaded(x).embedding))
    surfaces = [np.array(each.text_encoder.encode(TEXTS, max_length=9)) for each in (model, loaded)]
    assert np.array_equal(*surfaces)


def test_a_configuration_with_a_retired_field_is_read(tmp_path: Path) -> None:
    model = lively_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"gru_implementation": "nn.GRU"}))
    other = EnergyFlow.from_pretrained(tmp_path)
    x = mx.random.normal((2, 10))
    assert other.config == model.config
    np.testing.assert_allclose(np.array(other(x).embedding), np.array(model(x).embedding), atol=1e-5)


def test_texts_become_surfaces() -> None:
    encoder = lively_model(text_vocab_size=60).text_encoder
    with pytest.raises(ValueError, match="tokeniser: None, but texts need one: set text_encoder.tokeniser"):
        encoder.encode(TEXTS)
    encoder.tokeniser = tokeniser()
    surfaces = np.array(encoder.encode(TEXTS, max_length=9))
    assert surfaces.shape == (4, 12) and np.abs(surfaces).max() <= 1
    np.testing.assert_allclose(surfaces[2], np.array(encoder.encode(["empty"], max_length=9))[0], atol=1e-6)
    alone = np.array(encoder.encode(TEXTS[1:2], max_length=9))  # padding of longer neighbours does not matter
    np.testing.assert_allclose(surfaces[1], alone[0], atol=1e-6)
    assert np.abs(surfaces[0] - surfaces[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    lively_model().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        EnergyFlow.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = lively_model()
    model.save_pretrained(tmp_path)
    weights = dict(tree_flatten(model.parameters()))
    del weights["mapper.energy_bias"]
    weights["mapper.stranger"] = mx.zeros((2,))
    weights["collector.position_weights"] = mx.zeros((2, 2))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    with pytest.raises(ValueError, match="does not fit its config.json") as caught:
        EnergyFlow.from_pretrained(tmp_path)
    for fault in (
        "mapper.energy_bias is missing",
        "mapper.stranger is unknown",
        "collector.position_weights has shape (2, 2), config.json requires (3, 4)",
    ):
        assert fault in str(caught.value)


WRONG = {
    "position: shape (4, 2) came, accepted is (any, 3)": lambda m: m.neuron(mx.zeros((4, 2)), mx.zeros((4, 1))),
    "energy: shape (3, 1) came, accepted is (4, 1)": lambda m: m.neuron(mx.zeros((4, 3)), mx.zeros((3, 1))),
    "neuron_output: shape (4, 6) came, accepted is (any, 5)": lambda m: m.carrier(
        mx.zeros((4, 6)), mx.zeros((4, 1)), None, mx.zeros((4, 3))
    ),
    "hidden: shape (1, 4, 8) came, accepted is (2, 4, 8)": lambda m: m.carrier(
        mx.zeros((4, 5)), mx.zeros((4, 1)), mx.zeros((1, 4, 8)), mx.zeros((4, 3))
    ),
    "noise: shape (4,) came, accepted is (4, 3)": lambda m: m.carrier(
        mx.zeros((4, 5)), mx.zeros((4, 1)), None, mx.zeros((4, 3)), noise=mx.zeros((4,))
    ),
    "position_history: shape (4, 6, 3) came, accepted is (N, up to 5, 3)": lambda m: m.carrier(
        mx.zeros((4, 5)), mx.zeros((4, 1)), None, mx.zeros((4, 3)), position_history=mx.zeros((4, 6, 3))
    ),
    "embeddings: shape (2, 9) came, accepted is (any, 10)": lambda m: m(mx.zeros((2, 9))),
    "surface: an empty dictionary came": lambda m: m.collector.collect({}),
    "surface: cell (4, 0) came, accepted are x in 0..3 and y in 0..2": lambda m: m.collector.collect(
        {(4, 0): mx.zeros((1, 1))}
    ),
    "surface[(1, 1)]: shape (3, 1) came, accepted is (2, 1)": lambda m: m.collector.collect(
        {(0, 0): mx.zeros((2, 1)), (1, 1): mx.zeros((3, 1))}
    ),
    "attention_mask: shape (2, 4) came, accepted is (2, 3)": lambda m: m.text_encoder(
        mx.zeros((2, 3), dtype=mx.int32), mx.zeros((2, 4))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_shapes_are_refused_by_name(message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        WRONG[message](EnergyFlow(SMALL))


def test_presets_build_a_model() -> None:
    """MLX is lazy: the large weights are never made. `optimized` is left out: its orthogonal start, which is, takes seconds."""
    for preset in ("tiny", "debug", "experiment"):
        config = EnergyConfig.preset(preset)
        shapes = {name: value.shape for name, value in tree_flatten(EnergyFlow(config).parameters())}
        cells = config.surface_dim
        assert shapes["mapper.projection.8.weight"] == (cells, 2 * cells)
        assert shapes["collector.reconstruction.0.weight"] == (2 * cells, cells)
        assert shapes["text_encoder.surface_projection.4.weight"][0] == cells


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_in_evaluation_mode_can_be_exported(dtype: str, tmp_path: Path) -> None:
    model = lively_model(compute_dtype=dtype)
    x = mx.random.normal((3, 10))
    with mx.stream(mx.cpu):
        wanted = model(x).embedding
        mx.export_function(str(tmp_path / "model.mlxfn"), lambda x: model(x).embedding, x)
        (found,) = mx.import_function(str(tmp_path / "model.mlxfn"))(x)
    np.testing.assert_allclose(np.array(found), np.array(wanted), atol=1e-6)


def test_weights_that_mlx_saved_without_metadata_are_read(tmp_path: Path) -> None:
    model = EnergyFlow(EnergyConfig.tiny())
    model.save_pretrained(tmp_path)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(model.parameters())))
    assert b'"__metadata__":null' in (tmp_path / "model.safetensors").read_bytes()[:10_000].replace(b" ", b"")
    again = EnergyFlow.from_pretrained(tmp_path)
    assert mx.array_equal(again.neuron.layers[0].weight, model.neuron.layers[0].weight) and again.trained_steps == 0


@pytest.mark.parametrize(
    ("words", "dtype", "steps"),
    [
        ("have a dtype that is not accepted; accepted are F32, F16, BF16", mx.int32, "0"),
        ("have a dtype that is not accepted", mx.bool_, "0"),
        ("trained_steps in its metadata is 'many'; accepted is a whole number", mx.float32, "many"),
        ("trained_steps in its metadata is '-1'", mx.float32, "-1"),
        ("trained_steps in its metadata is '9999", mx.float32, "9" * 5000),
    ],
)
def test_weights_of_another_kind_are_refused_by_name(words: str, dtype: mx.Dtype, steps: str, tmp_path: Path) -> None:
    model = EnergyFlow(EnergyConfig.tiny())
    model.save_pretrained(tmp_path)
    arrays = {name: array.astype(dtype) for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays, metadata={"trained_steps": steps})
    with pytest.raises(ValueError, match=words):
        EnergyFlow.from_pretrained(tmp_path)


@pytest.mark.parametrize(("field", "part"), [("carrier_num_layers", "carrier.gru."), ("text_num_layers", "text_encoder.transformer_encoder.layers.")])
def test_another_number_of_layers_is_refused_before_they_are_built(field: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EnergyConfig.tiny()
    EnergyFlow(config).save_pretrained(tmp_path)
    config.replace(**{field: 1000}).to_json(tmp_path / "config.json")
    monkeypatch.setattr(EnergyFlow, "__init__", lambda *_: pytest.fail("built before it was judged"))
    with pytest.raises(ValueError, match=f"model.safetensors does not fit its config.json: {field} is 1000, the file has 1 of {part}"):
        EnergyFlow.from_pretrained(tmp_path)


def test_a_name_that_mlx_cannot_read_is_refused_by_file(tmp_path: Path) -> None:
    EnergyFlow(EnergyConfig.tiny()).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"neuron.", b"\\ud800n", 1))  # as long as before: half of a letter
    with pytest.raises(ValueError, match="model.safetensors: MLX cannot read it"):
        EnergyFlow.from_pretrained(tmp_path)


def test_sizes_that_the_weights_do_not_have_cost_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded decomposes no matrix for initial weights that the file's replace."""
    EnergyFlow(EnergyConfig.tiny()).save_pretrained(tmp_path)
    monkeypatch.setattr(np.linalg, "qr", lambda *_: pytest.fail("a matrix was decomposed"))
    EnergyFlow.from_pretrained(tmp_path)
    EnergyConfig.tiny().replace(carrier_hidden_size=2**20).to_json(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"carrier.gru.0.Wh has shape \(48, 16\), config.json requires \(3145728, 1048576\)"):
        EnergyFlow.from_pretrained(tmp_path)
