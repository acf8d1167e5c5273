"""A text decoder that learns: its loss, as part of a run and of a run that is done, and texts that come back."""

import json
import shutil
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from train.small import FIELDS, arguments, arrays, assert_same_arrays, small_config
from train.test_train import assert_same_run, stop_after

from energy_flow_mlx import ConfigError, EnergyConfig, EnergyFlow, evaluate
from energy_flow_mlx.data import TextPair, Tokeniser, open_teacher
from energy_flow_mlx.data.source import ArrayPairs, PairData
from energy_flow_mlx.data.target_tokens import with_target_tokens
from energy_flow_mlx.dataset.open import data_of_run
from energy_flow_mlx.models.text_decoder import CubeToTextDecoder, DecoderSettings
from energy_flow_mlx.nn import T5Settings
from energy_flow_mlx.text.rows import NO_TOKEN, framing, token_rows
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train import prepare as preparing
from energy_flow_mlx.train import run as training_run
from energy_flow_mlx.train.decoding import exact_share
from energy_flow_mlx.train.init_from import starting_from
from energy_flow_mlx.train.loss import cross_entropy, energy_flow_loss
from energy_flow_mlx.train.prepare import prepare

DECODER = {"text_decoder_dim": 8, "text_decoder_heads": 2, "text_decoder_layers": 1, "text_decoder_prefix": 3}
JOINT = {**DECODER, "text_decoder_loss_weight": 1.0}


@pytest.fixture(scope="module", autouse=True)
def without_figures():
    """Most of a small run's time is that of its curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "try_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run without a decoder."""
    run = tmp_path_factory.mktemp("runs") / "done"
    assert train.main(arguments(run)) == 0
    return run


def decoder_stage(done, out, **changes):
    """The command that trains a decoder on it."""
    fields = {"batch_size": 4, "training_steps": 4, "warmup_steps": 2, "checkpoint_interval": 2, "validation_interval": 2, **DECODER, **changes}
    flags = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["--init-from", str(done), "--part", "decoder", "--out", str(out), "--quiet", *flags]


@pytest.fixture(scope="module")
def decoded(done, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "decoder"
    assert train.main(decoder_stage(done, run)) == 0
    return run


def test_the_table_does_not_count_the_decoders_steps_as_the_flows(done, decoded):
    rows = [json.loads((run / "results.json").read_text())["splits"]["test"] for run in (done, decoded)]
    named = [next(name for name in each if name.startswith("energy flow")) for each in rows]
    assert named == ["energy flow (6 steps)", "energy flow (frozen)"]
    assert rows[1][named[1]]["cosine"] == pytest.approx(rows[0][named[0]]["cosine"], rel=1e-5)


def test_cross_entropy_is_the_mean_over_tokens_with_the_end_and_without_padding():
    logits = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    ids = [[2, 4, 3, NO_TOKEN], [2, 3, NO_TOKEN, NO_TOKEN]]
    seen = []

    def predict(tokens):
        seen.append(tokens.tolist())
        return mx.array(logits)

    log = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -np.mean([log[0, 0, 4], log[0, 1, 3], log[1, 0, 3]])
    np.testing.assert_allclose(cross_entropy(predict, mx.array(ids)).item(), wanted, rtol=1e-6)
    assert seen == [[[2, 4, 3], [2, 3, 0]]]
    assert cross_entropy(predict, mx.full((2, 4), NO_TOKEN)).item() == 0.0


def test_token_rows_end_with_no_token_and_leave_out_texts_that_are_missing():
    tokeniser = Tokeniser.whitespace(["a b c"], 10)
    start, end = framing(tokeniser)
    a, b, c = (tokeniser.token_id(word) for word in "abc")
    rows = token_rows(tokeniser, ["a b", "", "a b c a"], 5)
    assert rows.tolist() == [[start, a, b, end, NO_TOKEN], [NO_TOKEN] * 5, [start, a, b, c, end]]


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """A run whose model and decoder have done no step yet."""
    config = small_config(**JOINT, use_exploration_noise=False)
    return prepare(config, tmp_path_factory.mktemp("runs") / "joint", resume=False)


@pytest.mark.parametrize("part", ["all", "decoder"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_loss_mixes_mapped_surfaces_and_those_of_flows(joint, share, part):
    model, batch = joint.model, joint.data.train.batch(np.arange(4))
    config = joint.config.replace(text_decoder_flow_share=share, text_decoder_loss_weight=2.0, part=part, init_from="runs/done")
    loss, parts = energy_flow_loss(model, config, batch)
    inputs = np.where(batch.attention_mask > 0, batch.input_ids, NO_TOKEN)
    embeddings = mx.array(np.concatenate([batch.input_embedding, batch.target_embedding]))
    mapped = cross_entropy(partial(model.text_decoder, model.map_to_surface(embeddings).reshape(8, -1)), mx.array(np.concatenate([inputs, batch.target_ids])))
    flows = cross_entropy(partial(model.text_decoder, model(batch.input_embedding).surface), mx.array(batch.target_ids))
    wanted = (1 - share) * mapped.item() + share * flows.item()
    np.testing.assert_allclose(parts.decoding.item(), wanted, rtol=1e-5)
    others, _ = energy_flow_loss(model, config.replace(text_decoder_loss_weight=0.0, part="all"), batch)
    np.testing.assert_allclose(loss.item(), 2 * wanted + (others.item() if part == "all" else 0), rtol=1e-5)


def test_in_a_run_the_decoder_teaches_mapper_and_flows(tmp_path):
    changes = {**JOINT, "surface_loss_weight": 0, "text_loss_weight": 0, "embedding_loss_weight": 0, "arrival_loss_weight": 0, "training_steps": 1}
    assert train.main(arguments(tmp_path / "run", **changes)) == 0
    moments = mx.load(str(tmp_path / "run/optimizer.safetensors"))
    moved = {name.removesuffix(".v") for name, value in moments.items() if name.endswith(".v") and value.max().item() > 0}
    for part in ("text_decoder.surface_adapter", "text_decoder.decoder.layers", "mapper.projection", "carrier."):
        assert any(name.startswith(part) for name in moved), part
    assert not any(name.startswith(("text_encoder", "collector")) for name in moved)


def test_a_run_with_a_decoder_resumes_to_the_bit(tmp_path, monkeypatch):
    assert train.main(arguments(tmp_path / "whole", **JOINT, dropout=0.2)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train.main(arguments(tmp_path / "run", **JOINT, dropout=0.2)) == 130
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_decoder_of_a_finished_run_learns_alone(done, decoded, capsys):
    before, after = (mx.load(str(run / "model.safetensors")) for run in (done, decoded))
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    steps = [json.loads(line) for line in (decoded / "metrics.jsonl").read_text().splitlines()]
    losses = [line["decoding"] for line in steps if "decoding" in line]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert [line["step"] for line in steps if "validation_exact" in line] == [2, 4]
    moments = mx.load(str(decoded / "optimizer.safetensors"))
    assert {name.partition(".")[0] for name in moments if name.endswith(".m")} == {"text_decoder"}
    model = EnergyFlow.from_pretrained(decoded)
    texts = model.decode(embedding=mx.array(open_teacher("builtin", dim=12).embed(["a dog runs."])), max_length=5)
    assert len(texts) == 1
    assert evaluate.main([str(decoded)]) == 0


def test_a_decoder_alone_resumes_to_the_bit(done, decoded, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train.main(decoder_stage(done, tmp_path / "run")) == 130
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert_same_arrays(arrays(tmp_path / "run"), arrays(decoded))


def test_a_decoder_goes_on_in_another_run_with_the_flows(decoded, tmp_path):
    """Flows not frozen: `part` is all."""
    command = ["--init-from", str(decoded), "--out", str(tmp_path / "on"), "--training-steps", "1", "--quiet"]
    assert train.main(command) == 0
    before, after = arrays(decoded), arrays(tmp_path / "on")
    for name in ("text_decoder.safetensors:surface_adapter.0.weight", "model.safetensors:mapper.projection.0.weight"):
        assert not np.array_equal(before[name], after[name]), name


def test_flows_move_as_far_as_the_run_that_they_come_from_ended_with(tmp_path):
    changes = {"displacement_scale_min": 0.2, "displacement_warmup_steps": 1, "displacement_scale_update_interval": 1}
    assert train.main(arguments(tmp_path / "run", **changes)) == 0
    assert train.main(decoder_stage(tmp_path / "run", tmp_path / "on")) == 0
    embeddings = open_teacher("builtin", dim=12).embed(["a dog runs.", "a cat sleeps."])
    first, second = (EnergyFlow.from_pretrained(tmp_path / name)(embeddings).surface for name in ("run", "on"))
    assert EnergyFlow.from_pretrained(tmp_path / "run").carrier.displacement_scale(6) < 0.9
    np.testing.assert_allclose(np.array(first), np.array(second), atol=1e-6)


def test_texts_come_back(tmp_path, monkeypatch):
    """A decoder learns eight sentences by heart, and a saved model gives them back from their embeddings."""
    texts = ["a dog runs.", "the cat sleeps.", "a man reads a book.", "two men read.", "the dog sleeps.", "a cat reads.", "runs.", "a man runs the dog."]
    teacher, tokeniser = open_teacher("builtin", dim=12), Tokeniser.train(texts, 120)
    pairs = ArrayPairs.embed([TextPair(text, text) for text in texts], teacher, tokeniser, 16)
    data = with_target_tokens(PairData(pairs, pairs, pairs, tokeniser, "eight", "eight"), 16)
    monkeypatch.setattr(preparing, "data_of_run", lambda config, tokeniser: data)
    fields = {
        **FIELDS, **JOINT, "text_decoder_dim": 32, "batch_size": 8, "training_steps": 60, "learning_rate": 1e-2, "flows_enabled": False,
        "text_decoder_flow_share": 0.0, "use_exploration_noise": False, "validation_interval": 1000, "checkpoint_interval": 1000,
    }  # fmt: skip
    assert train.main(["--quiet", "--out", str(tmp_path / "run"), *arguments(**fields)[1:]]) == 0
    model = EnergyFlow.from_pretrained(tmp_path / "run")
    embeddings = mx.array(teacher.embed(texts))
    for beams in (1, 4):
        assert model.decode(embedding=embeddings, num_beams=beams, max_length=16) == texts
    assert exact_share(model, data.test, 16) == 1.0
    model.save_pretrained(tmp_path / "copy")
    assert EnergyFlow.from_pretrained(tmp_path / "copy").text_decoder.settings == model.text_decoder.settings


def refused(capsys, *command):
    capsys.readouterr()
    assert train.main([str(word) for word in command]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    return error


def test_refused(done, decoded, tmp_path, capsys):
    out = ("--out", tmp_path / "new", "--quiet")
    assert "part=decoder needs init_from" in refused(capsys, "--part", "decoder", *out)
    assert "text_decoder_heads=3 must divide text_decoder_dim=8" in refused(capsys, *decoder_stage(done, tmp_path / "new", text_decoder_heads=3))
    assert "missing/config.json" in refused(capsys, *decoder_stage(tmp_path / "missing", tmp_path / "new"))
    assert "other sizes" in refused(capsys, *decoder_stage(decoded, tmp_path / "new", text_decoder_prefix=2))
    assert "--lattice-width 4 (3 in that model)" in refused(capsys, *decoder_stage(done, tmp_path / "new", lattice_width=4))
    assert "part" in refused(capsys, "--resume", done, "--part", "decoder")
    assert not (tmp_path / "new/trainer.json").exists()


def test_a_run_whose_decoder_is_gone_is_not_resumed_with_another_one(decoded, tmp_path, capsys):
    shutil.copytree(decoded, tmp_path / "run")
    for name in ("text_decoder.json", "text_decoder.safetensors"):
        (tmp_path / "run" / name).unlink()
    assert "text_decoder.json, text_decoder.safetensors missing" in refused(capsys, "--resume", tmp_path / "run")


def test_a_tokeniser_that_does_not_frame_texts_is_refused():
    from tokenizers import Tokenizer, models

    bare = Tokeniser(Tokenizer(models.WordLevel({"empty": 0, "[UNK]": 1}, unk_token="[UNK]")))
    with pytest.raises(ConfigError, match=r"does not fit a text decoder: it makes empty of a text; accepted .*\[CLS\]"):
        framing(bare)


def test_data_without_texts_are_refused():
    data = data_of_run(small_config())
    with pytest.raises(ValueError, match="text_decoder_loss_weight must be 0 with .*no texts"):
        with_target_tokens(data._replace(tokeniser=None), 16)


def test_a_prefix_of_several_vectors():
    mx.random.seed(0)
    t5 = T5Settings(vocab_size=20, dim=8, layers=1, heads=2, head_dim=4, feedforward_dim=12)
    decoder = CubeToTextDecoder(DecoderSettings(surface_dim=6, adapter_dim=10, prefix=3, t5=t5))
    decoder.eval()
    prefix = np.array(decoder.adapt(mx.random.normal((2, 6))))
    assert prefix.shape == (2, 3, 8)
    np.testing.assert_allclose(prefix.mean(-1), 0, atol=1e-5)  # each vector is normalised by itself
    assert np.abs(prefix[:, 0] - prefix[:, 1]).max() > 0.1


def test_the_configuration_of_a_part_starts_from_the_runs(done):
    config = starting_from(done, part="decoder", learning_rate=0.5)
    there = EnergyConfig.from_json(done / "config.json")
    assert config.lattice_width == there.lattice_width and config.train_pairs == there.train_pairs
    assert (config.learning_rate, config.text_decoder_loss_weight, config.part) == (0.5, 1.0, "decoder")
