"""A run that starts from the weights of a model."""

import dataclasses
import re

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from train.small import FIELDS, arguments, small_config, validate_as

from energy_flow_mlx import ConfigError, EnergyFlow, Run
from energy_flow_mlx.config import ModelConfig
from energy_flow_mlx.convert import __main__ as convert
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train.init_from import ARCHITECTURE, initial_model
from energy_flow_mlx.train.prepare import prepare

RATES = ["--quiet", "--training-steps", "2", "--batch-size", "2", "--train-pairs", "40", "--text-max-length", "16", "--test-pairs", "8", "--validation-pairs", "8"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        validate_as(patch, {})
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert train.main(arguments(run, training_steps=2)) == 0
    return run


def shapes(config):
    return {name: array.shape for name, array in tree_flatten(EnergyFlow(config).parameters())}


def test_a_new_run_has_the_weights_and_the_tokeniser_and_nothing_else_behind_it(trained, tmp_path):
    config = small_config(init_from=str(trained), learning_rate=0.5, seed=3, use_exploration_noise=False, train_pairs=60)
    run = prepare(config, tmp_path / "run", resume=False)
    source = EnergyFlow.from_pretrained(trained)
    assert (source.trained_steps, run.model.trained_steps, run.state.step) == (2, 0, 0)
    for (name, array), (_, other) in zip(tree_flatten(run.model.parameters()), tree_flatten(source.parameters()), strict=True):
        np.testing.assert_array_equal(np.array(array), np.array(other), err_msg=name)
    assert run.model.config == config and run.optimiser.state["step"].item() == 0
    texts = ["the violinist holds a tool."]
    mine, theirs = (model.text_encoder.tokeniser.encode(texts, 16) for model in (run.model, source))
    np.testing.assert_array_equal(mine.input_ids, theirs.input_ids)
    assert run.data.tokeniser is run.model.text_encoder.tokeniser


@pytest.mark.parametrize("by", ["flag", "file"])
def test_the_command_takes_the_architecture_of_the_model(by, trained, tmp_path):
    (tmp_path / "fine.yaml").write_text(f"init_from: {trained}\n")
    named = ["--init-from", str(trained)] if by == "flag" else ["--config", str(tmp_path / "fine.yaml")]
    assert train.main([*named, *RATES, "--out", str(tmp_path / "run"), "--no-use-exploration-noise"]) == 0
    run = Run.load(tmp_path / "run")
    assert (run.config.lattice_width, run.config.text_vocab_size, run.config.init_from) == (3, 120, str(trained))
    assert (run.config.use_exploration_noise, run.config.batch_size, run.model.trained_steps) == (False, 2, 2)
    assert f"--init-from {trained}" in run.config.command()
    assert train.main(["--resume", str(run.folder), "--quiet", "--training-steps", "3"]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lattice-width", "10"], r"init_from=.*trained: the weights of that model cannot take --lattice-width 10 \(3 in that model\)"),
        (["--text-num-heads", "1", "--carrier-num-layers", "2"], r"--carrier-num-layers 2 \(1 in that model\), --text-num-heads 1 \(2 in"),
        (["--init-from", "nowhere"], r"nowhere/config.json is missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(flags, words, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(["--init-from", str(trained), *RATES, *flags]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_quantised_weights_are_refused(trained, tmp_path, capsys):
    fields = {**FIELDS, "lattice_width": 8, "lattice_height": 8}
    EnergyFlow(small_config(**fields)).save_pretrained(tmp_path / "model")
    assert convert.main([str(tmp_path / "model"), "--quantise", "8", "--to", str(tmp_path / "small")]) == 0
    with pytest.raises(ConfigError, match="quantised to 8 bits"):
        initial_model(small_config(**fields, init_from=str(tmp_path / "small")))


def test_weights_of_another_dtype_are_trained_in_float32(tmp_path):
    model = EnergyFlow(small_config())
    model.set_dtype(mx.float16)
    model.save_pretrained(tmp_path / "half")
    model, _ = initial_model(small_config(init_from=str(tmp_path / "half")))
    arrays = tree_flatten(model.parameters())
    assert {array.dtype for _, array in arrays} == {mx.float32}


OTHERS = {int: lambda value: 2 * value, bool: lambda value: not value}


@pytest.mark.parametrize("field", [each for each in dataclasses.fields(ModelConfig) if each.type in OTHERS], ids=lambda each: each.name)
def test_every_field_that_decides_the_shapes_is_part_of_the_architecture(field):
    config = small_config()
    other = config.replace(**{field.name: OTHERS[field.type](getattr(config, field.name))})
    assert (shapes(other) == shapes(config)) == (field.name not in ARCHITECTURE or field.name in ("text_num_heads", "input_residual"))
