"""What a run that trains a part of a model, or that starts from another one, shares with every run."""

import json

import pytest
from train.small import arguments, small_config
from train.test_decoder_learns import DECODER, decoder_stage, without_figures  # noqa: F401

from energy_flow_mlx import ConfigError
from energy_flow_mlx.train import Trainer, checkpoint, command, correction, memory
from energy_flow_mlx.train.decoding import decoder_settings
from energy_flow_mlx.train.found import found_run
from energy_flow_mlx.train.prepare import prepare
from energy_flow_mlx.train.trainer import new_folder


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run whose displacement scale has decayed."""
    run = tmp_path_factory.mktemp("runs") / "parent"
    schedule = {"displacement_scale_min": 0.1, "displacement_warmup_steps": 0, "displacement_scale_update_interval": 1}
    assert command.main(arguments(run, training_steps=4, **schedule)) == 0
    return run


@pytest.fixture(scope="module")
def decoded(parent, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "decoded"
    assert command.main(decoder_stage(parent, run, training_steps=6, validation_interval=2, early_stopping=1)) == 0
    return run


def validated(run):
    return [(line["validation_decoding"], line["step"]) for line in checkpoint.read_metrics(run) if "validation_decoding" in line]


def test_the_best_of_a_decoder_is_that_of_the_smallest_cross_entropy(decoded):
    found = validated(decoded)
    state = json.loads((decoded / "trainer.json").read_text())
    assert found[0][0] > found[-1][0]  # it learns, and so early stopping did not end it
    assert (-state["best_validation_score"], state["best_step"]) == min(found)
    assert state["step"] == 6


def test_a_dry_run_says_by_what_the_best_of_a_decoder_is_judged(parent, tmp_path, capsys):
    assert command.main([*decoder_stage(parent, tmp_path / "run"), "--dry-run"]) == 0
    assert "after each validation with a better cross-entropy, every 2 steps" in capsys.readouterr().out


def test_fit_again_has_the_configuration_that_the_first_one_made(parent, tmp_path):
    config = command.layered_config(None, None, {"init_from": str(parent)}, command.model_fields)
    trainer = Trainer(config, out=tmp_path / "run", quiet=True)
    run = trainer.fit()
    assert run.config.displacement_scale == pytest.approx(0.9**4) != config.displacement_scale
    assert trainer.config == run.config
    assert Trainer(config, out=tmp_path / "run", resume=True).config == run.config  # as --seeds gives it when it goes on
    with pytest.raises(ConfigError, match="other values of dropout"):
        Trainer(config.replace(dropout=0.5), out=tmp_path / "run", resume=True)


def test_hypotheses_alone_are_no_run_yet_and_go_with_a_checkpoint(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / checkpoint.HYPOTHESES).write_text("{}")
    assert new_folder(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run" / "trainer.json").write_text("{}")
    assert new_folder(tmp_path / "run") == tmp_path / "run-2"
    assert list(checkpoint.files(tmp_path / "run")) == ["trainer.json", checkpoint.HYPOTHESES]


def test_the_parameters_of_a_decoder_are_counted(tmp_path):
    config = small_config(**{**DECODER, "text_decoder_dim": 32, "text_decoder_loss_weight": 1.0})
    model = prepare(config, tmp_path / "run", resume=False).model
    assert decoder_settings(config, model.text_encoder.tokeniser).t5.dim == 32
    counted = sum(array.size for name, array in checkpoint.named_arrays(model.parameters()).items() if name.startswith("text_decoder"))
    assert memory.text_decoding(config)[0] == pytest.approx(counted, rel=0.25)
    assert memory.text_decoding(config.replace(text_decoder_loss_weight=0.0)) == (0, 0)


@pytest.mark.parametrize(("given", "wanted"), [("parent/", "parent-decoder"), ("parent/best", "parent-decoder"), ("OWNER/NAME", "runs/NAME-decoder")])
def test_a_part_lies_beside_its_run(given, wanted, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent" / "best").mkdir(parents=True)
    config = small_config(init_from=given, part="decoder", text_decoder_loss_weight=1.0)
    monkeypatch.setattr(command, "layered_config", lambda *_: config)
    taken = []

    def trainer(config, out, **options):
        taken.append(str(out))
        raise ConfigError("enough")

    monkeypatch.setattr(command, "Trainer", trainer)
    assert command.main([]) == 2
    assert taken == [wanted]


def test_the_best_run_is_one_of_flows(parent, decoded):
    runs = parent.parent
    (runs / "decoder").symlink_to(decoded)
    assert found_run("best", runs)[0] == parent
    run, told = found_run("latest", runs)
    loss, step = min(validated(decoded))
    assert run == runs / "decoder"
    assert told.endswith(f"step 6, the best validation cross-entropy {loss:.4f} at step {step}")


def test_seeds_are_not_sharded(capsys):
    assert command.main(["--seeds", "0,1", "--shard-optimiser"]) == 2
    assert "--shard-optimiser" in capsys.readouterr().err


@pytest.mark.parametrize("train", [5, "ab", {"a": 1, "b": 2}, ["a"], ["a", 1], None])
def test_other_hypotheses_than_those_of_the_run_are_refused(train, tmp_path):
    path = tmp_path / checkpoint.HYPOTHESES
    path.write_text(json.dumps({"train": train, "validation": ["c"], "more": 1}))
    with pytest.raises(checkpoint.CheckpointError, match=f"{checkpoint.HYPOTHESES} .*hold"):
        correction._read(path, {"train": 2, "validation": 1})
    path.write_text(json.dumps({"train": ["a", "b"], "validation": ["c"], "more": 1}))
    assert correction._read(path, {"train": 2, "validation": 1}) == {"train": ["a", "b"], "validation": ["c"]}
