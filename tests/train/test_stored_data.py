"""Runs on stored data: training, stopping and resuming, texts that are missing, the MLP beside the model."""

import json

import mlx.core as mx
import numpy as np
import pytest
from dataset.files import full_records, placed
from train.small import arguments, arrays, assert_same_arrays, small_config, small_model
from train.test_train import stop_after

from energy_flow_mlx import evaluate
from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.dataset.formats import write_file
from energy_flow_mlx.dataset.open import open_data
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train.baselines import MLP, hidden_width, mlp_baseline, parameter_count


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGY_FLOW_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "set"
    build(Settings(sources=("builtin:100",), dim=12, shard_rows=64, validation=10, test=12), path, quiet=True)
    return path


def test_a_run_on_a_folder_stopped_and_resumed_equals_an_uninterrupted_one(folder, tmp_path, monkeypatch, capsys):
    assert train.main(arguments(tmp_path / "whole", data=folder)) == 0
    assert f"12 held-out test pairs of {folder} (teacher hashed-ngram-12-seed0)" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train.main(arguments(tmp_path / "run", data=folder)) == 130
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert_same_arrays(arrays(tmp_path / "run"), arrays(tmp_path / "whole"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == str(folder)
    assert evaluate.main([str(tmp_path / "run")]) == 0


def test_a_run_resumes_on_its_own_data_wherever_it_lies_now(folder, tmp_path, capsys):
    assert train.main(arguments(tmp_path / "run", data=folder)) == 0
    build(Settings(sources=("builtin:100",), dim=12, validation=10, test=12, seed=1), tmp_path / "other", quiet=True)
    capsys.readouterr()
    assert train.main(["--resume", str(tmp_path / "run"), "--training-steps", "8", "--data", str(tmp_path / "other")]) == 2
    assert "a run resumes on its own data" in capsys.readouterr().err
    (tmp_path / "moved").mkdir()
    for path in folder.iterdir():
        (tmp_path / "moved" / path.name).write_bytes(path.read_bytes())
    moved = ["--data", str(tmp_path / "moved")]
    assert train.main(["--resume", str(tmp_path / "run"), "--training-steps", "8", "--quiet", *moved]) == 0


def test_pairs_without_texts_train_without_the_text_loss(tmp_path, monkeypatch, capsys):
    made = [record._replace(input=None, target=None, input_ids=None, attention_mask=None) for record in full_records(60, 12)]
    write_file(tmp_path / "a.safetensors", placed(made))
    data = str(tmp_path / "a.safetensors")
    assert train.main(arguments(tmp_path / "whole", data=data)) == 0
    assert "has no texts: text_loss_weight is 0 instead of 0.1" in capsys.readouterr().err
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["text_loss_weight"] == 0
    assert not (tmp_path / "whole" / "tokenizer.json").exists()
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train.main(arguments(tmp_path / "run", data=data)) == 130
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert_same_arrays(arrays(tmp_path / "run"), arrays(tmp_path / "whole"))
    assert evaluate.main([str(tmp_path / "run")]) == 0


def test_a_text_loss_alone_cannot_train_without_texts(tmp_path, capsys):
    made = [record._replace(input=None, target=None, input_ids=None, attention_mask=None) for record in full_records(60, 12)]
    write_file(tmp_path / "a.safetensors", placed(made))
    losses = {"surface_loss_weight": 0, "embedding_loss_weight": 0, "text_loss_weight": 1}
    assert train.main(arguments(tmp_path / "run", data=tmp_path / "a.safetensors", **losses)) == 2
    assert "at least one must be positive" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_embedding_dim_from_teacher": 24}, "it has embeddings of 12 numbers, input_embedding_dim_from_teacher is 24"),
        ({"batch_size": 100}, "batch_size must be at most the 78 pairs of the data set, got 100"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_a_folder_is_made(folder, tmp_path, capsys, changes, words):
    assert train.main(arguments(tmp_path / "run", data=folder, **changes)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_mlp_has_as_many_parameters_as_asked_and_no_more():
    for parameters, dim in ((500, 12), (50_000, 12), (2_000_000, 768), (300_000, 384)):
        width = hidden_width(parameters, dim)
        assert parameter_count(MLP(dim, width)) <= parameters < parameter_count(MLP(dim, width + 1))
    assert hidden_width(10, 768) == 1


def test_the_mlp_learns_on_the_models_batches(folder):
    config = small_config(data=str(folder), training_steps=150, batch_size=16, gradient_accumulation_steps=2, warmup_steps=5)
    data = open_data(str(folder), train=1, validation=1, test=1, seed=0, dim=12, vocab_size=120, max_length=16)
    model = small_model(config)
    model.trained_steps = 0
    _, untrained = mlp_baseline(model, data, config)
    model.trained_steps = 150
    name, scores = mlp_baseline(model, data, config)
    assert name.startswith("MLP (") and name.endswith("parameters, 150 steps)")
    assert scores.cosine > untrained.cosine + 0.3
    assert mlp_baseline(model, data, config) == (name, scores)
    _, more = mlp_baseline(model, data, config.replace(batch_size=1000))  # more than there are pairs
    assert more.cosine > untrained.cosine
    # The number in the table is the mean cosine: an MLP without steps is its initial weights.
    mx.random.seed(config.seed)
    mlp = MLP(12, hidden_width(parameter_count(model), 12))
    batch = data.test.batch(np.arange(12))
    predicted, y = np.array(mlp(mx.array(batch.input_embedding))), batch.target_embedding
    cosines = (predicted * y).sum(1) / np.linalg.norm(predicted, axis=1) / np.linalg.norm(y, axis=1)
    assert untrained.cosine == pytest.approx(cosines.mean(), abs=1e-5)


def test_the_mlp_stands_in_the_table_when_asked_for(folder, tmp_path, capsys):
    assert train.main([*arguments(tmp_path / "run", data=folder), "--mlp-baseline"]) == 0
    table = capsys.readouterr().out
    assert evaluate.main([str(tmp_path / "run"), "--mlp-baseline"]) == 0
    assert capsys.readouterr().out == table and "MLP (" in table
    assert evaluate.main([str(tmp_path / "run")]) == 0
    assert "MLP (" not in capsys.readouterr().out
