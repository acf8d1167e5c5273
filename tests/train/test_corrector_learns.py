"""A text corrector that learns from what a decoder wrote."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from train.small import arguments, arrays, assert_same_arrays
from train.test_decoder_learns import DECODER, JOINT, refused, without_figures  # noqa: F401
from train.test_train import stop_after

from energy_flow_mlx import ConfigError, EnergyFlow
from energy_flow_mlx.convert import __main__ as convert
from energy_flow_mlx.data import HashedNgramTeacher, TextPair, Tokeniser, open_teacher
from energy_flow_mlx.data.source import ArrayPairs, PairData
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train import prepare as preparing

STAGE = {"batch_size": 4, "training_steps": 4, "warmup_steps": 2, "checkpoint_interval": 2, "validation_interval": 2, "text_corrector_pairs": 10}


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """A finished run with a decoder."""
    run = tmp_path_factory.mktemp("runs") / "decoded"
    assert train.main(arguments(run, **JOINT, training_steps=2)) == 0
    return run


def stage(decoded, out, **changes):
    flags = [word for name, value in {**STAGE, **changes}.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["--init-from", str(decoded), "--part", "corrector", "--out", str(out), "--quiet", *flags]


@pytest.fixture(scope="module")
def corrected(decoded, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "corrected"
    assert train.main(stage(decoded, run)) == 0
    return run


def corrector_arrays(run):
    return {name: np.array(value) for name, value in mx.load(str(run / "text_corrector.safetensors")).items()} | arrays(run)


def test_the_corrector_learns_alone(decoded, corrected):
    before, after = arrays(decoded), arrays(corrected)
    held = [name for name in before if not name.startswith("optimizer")]
    assert held and all(np.array_equal(before[name], after[name]) for name in held)
    assert {name.partition(":")[2].partition(".")[0] for name in after if name.endswith(".m")} == {"text_corrector"}
    lines = [json.loads(line) for line in (corrected / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_exact_before" in line] == [2, 4]
    assert all(line["loss"] == line["decoding"] > 0 for line in lines if "loss" in line)


def test_its_hypotheses_are_what_the_decoder_writes(corrected):
    written = json.loads((corrected / "hypotheses.json").read_text())
    assert [len(written[name]) for name in ("train", "validation")] == [20, 16]  # both texts of at most 10 pairs
    assert len(set(written["train"])) > 10


def test_it_resumes_to_the_bit_with_the_hypotheses_that_were_drawn(decoded, corrected, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train.main(stage(decoded, run)) == 130
    shutil.copytree(run, tmp_path / "without")
    assert train.main(["--resume", str(run), "--quiet"]) == 0
    assert_same_arrays(corrector_arrays(run), corrector_arrays(corrected))

    path = tmp_path / "without/hypotheses.json"
    drawn = json.loads(path.read_text())
    path.write_text(json.dumps({**drawn, "train": ["a"] * 20}))  # they are not drawn anew
    assert train.main(["--resume", str(tmp_path / "without"), "--quiet"]) == 0
    others = corrector_arrays(tmp_path / "without")
    assert not all(np.array_equal(array, others[name]) for name, array in corrector_arrays(corrected).items())

    for damaged in ("[]", "{", json.dumps({**drawn, "train": ["a"]}), json.dumps({**drawn, "train": [1] * 20})):
        path.write_text(damaged)
        assert "hypotheses.json" in refused(capsys, "--resume", tmp_path / "without")
    path.unlink()
    assert "hypotheses.json" in refused(capsys, "--resume", tmp_path / "without")
    (tmp_path / "without/text_corrector.json").unlink()
    assert "text_corrector.json, hypotheses.json missing" in refused(capsys, "--resume", tmp_path / "without")


@pytest.mark.parametrize("part", ["all", "decoder", "corrector"])
def test_compiled_steps_do_the_same(part, decoded, corrected, tmp_path):
    """Each part goes on from a run that has all three."""
    runs = []
    for mode in ("off", "on"):
        runs.append(tmp_path / mode)
        share = {"text_decoder_flow_share": 0.0} if part == "decoder" else {}
        fields = {**STAGE, **DECODER, **share, "part": part, "compile_step": mode, "validation_interval": 4, "checkpoint_interval": 4}
        flags = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        assert train.main(["--init-from", str(corrected), "--out", str(runs[-1]), "--quiet", *flags]) == 0
    eager, compiled = (corrector_arrays(run) for run in runs)
    before, learns = corrector_arrays(corrected), {"all": "model.", "decoder": "text_decoder.", "corrector": "decoder.layers."}[part]
    assert any(name.startswith(learns) and not np.array_equal(array, before[name]) for name, array in eager.items() if name in before)
    for name, array in eager.items():
        np.testing.assert_allclose(array, compiled[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_ablation_of_a_run_with_a_decoder_has_none(tmp_path, capsys):
    assert train.main([*arguments(tmp_path / "run", **JOINT, training_steps=1), "--ablation", "--mlp-baseline"]) == 0
    assert "flow left out (1 steps)" in capsys.readouterr().out


def test_the_benchmark_has_no_decoder():
    from energy_flow_mlx.benchmark.work import benchmark_config

    with pytest.raises(ConfigError, match="text_decoder_loss_weight must be 0"):
        benchmark_config("tiny", None, {"text_decoder_loss_weight": 1.0}, as_trained=True)


def test_pytorch_gets_what_it_has(decoded, corrected, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    for run, named in ((decoded, ["text decoder: left out; it reads 3 vectors"]), (corrected, ["text decoder", "text corrector: left out"])):
        assert convert.main([str(run), "--to-torch", "--to", str(tmp_path / run.name)]) == 0
        said = capsys.readouterr().out
        assert all(words in said for words in named)
        checkpoint = torch.load(tmp_path / run.name / "checkpoint.pt", weights_only=False)
        assert "text_decoder_state_dict" not in checkpoint and "model_state_dict" in checkpoint


def test_refused(decoded, corrected, tmp_path, capsys):
    new = tmp_path / "new"
    assert "part=corrector needs init_from" in refused(capsys, "--part", "corrector", "--out", new)
    plain = tmp_path / "plain"
    assert train.main(arguments(plain, training_steps=1)) == 0
    assert "has no text decoder to correct" in refused(capsys, *stage(plain, new))
    assert "text_corrector_teacher=nowhere" in refused(capsys, *stage(decoded, new, text_corrector_teacher="nowhere"))
    assert "corrector of other sizes" in refused(capsys, *stage(corrected, new, text_max_length=12))
    assert not (new / "trainer.json").exists()


def test_a_text_is_corrected(tmp_path, monkeypatch):
    """A corrector learns what eight wrong texts should have been, and a saved model gives those back within two rounds."""
    texts = ["a dog runs.", "the cat sleeps.", "a man reads a book.", "two men read.", "the dog sleeps.", "a cat reads.", "runs.", "a man runs the dog."]
    teacher, tokeniser = open_teacher("builtin", dim=12), Tokeniser.train(texts, 120)
    pairs = ArrayPairs.embed([TextPair(text, text) for text in texts], teacher, tokeniser, 16)
    data = PairData(pairs, pairs, pairs, tokeniser, "eight", "eight")
    from energy_flow_mlx.data.target_tokens import with_target_tokens

    monkeypatch.setattr(
        preparing, "data_of_run", lambda config, tokeniser: with_target_tokens(data, 16) if config.text_decoder_loss_weight else data
    )
    sizes = {**JOINT, "text_decoder_dim": 32, "batch_size": 8, "training_steps": 1, "flows_enabled": False, "use_exploration_noise": False}
    assert train.main(arguments(tmp_path / "run", **sizes)) == 0
    changes = {"text_corrector_temperature": 0, "batch_size": 16, "training_steps": 60, "learning_rate": 5e-3, "validation_interval": 1000, "checkpoint_interval": 1000}
    assert train.main(stage(tmp_path / "run", tmp_path / "on", **changes)) == 0
    model, wanted = EnergyFlow.from_pretrained(tmp_path / "on"), mx.array(teacher.embed(texts))
    before = model.decode(embedding=wanted, num_beams=1, max_length=16)
    after = model.decode(embedding=wanted, rounds=2, teacher=HashedNgramTeacher(12), num_beams=1, max_length=16)
    assert sum(a == b for a, b in zip(before, texts, strict=True)) < 4
    assert after == texts
