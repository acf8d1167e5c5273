"""Run folders: what is written is read back, and what does not fit is refused."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from train.small import small_config, small_data, small_model

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.files import COMPLETE, INCOMING, resolve, settle, write_folder
from energy_flow_mlx.tensors import save_arrays
from energy_flow_mlx.train import checkpoint
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train.checkpoint import CheckpointError, TrainerState
from energy_flow_mlx.train.optimiser import Plateau, freeze_unreached, make_optimiser, named_arrays
from energy_flow_mlx.train.step import TrainStep


@pytest.fixture
def saved(tmp_path):
    """A run after two steps."""
    config = small_config()
    model, optimiser, data = small_model(config), make_optimiser(config), small_data(config)
    model.text_encoder.tokeniser = data.tokeniser
    step = TrainStep(model, optimiser, config)
    for number in range(2):
        step(number, [data.train.batch(np.arange(4))], 1e-3)
    state = TrainerState(2, Plateau(best=0.25, waited=3, factor=0.5), best_validation_score=0.75, best_step=1)
    checkpoint.save(tmp_path, model, optimiser, config, state)
    return tmp_path, model, optimiser, state


def loaded(run):
    model = EnergyFlow.from_pretrained(run)
    freeze_unreached(model, model.config)
    optimiser = make_optimiser(model.config)
    return model, optimiser, checkpoint.load(run, model, optimiser)


def test_a_checkpoint_gives_back_every_array_and_the_state(saved):
    run, model, optimiser, state = saved
    again, optimiser_again, state_again = loaded(run)
    assert state_again == state
    assert again.trained_steps == 2
    for ours, theirs in ((model.parameters(), again.parameters()), (optimiser.state, optimiser_again.state)):
        ours, theirs = named_arrays(ours), named_arrays(theirs)
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert array.dtype == theirs[name].dtype, name
            np.testing.assert_array_equal(np.array(array), np.array(theirs[name]), err_msg=name)
    assert sorted(path.name for path in run.iterdir()) == sorted(checkpoint.FILES)


def test_a_fresh_state_survives_json(tmp_path, saved):
    run, model, optimiser, _ = saved
    model.trained_steps = 0
    checkpoint.save(run, model, optimiser, model.config, TrainerState())
    assert json.loads((run / "trainer.json").read_text())["plateau"]["best"] is None
    assert loaded(run)[2] == TrainerState(plateau=Plateau(best=math.inf))


def test_an_older_state_with_its_best_as_a_cosine_is_read(saved):
    run, _, _, state = saved
    written = json.loads((run / "trainer.json").read_text())
    older = {("best_validation_cosine" if name == "best_validation_score" else name): value for name, value in written.items()}
    assert older != written
    (run / "trainer.json").write_text(json.dumps(older))
    assert loaded(run)[2] == state
    (run / "trainer.json").write_text(json.dumps({**older, "best_validation_cosine": None}))
    assert loaded(run)[2].best_validation_score == -math.inf
    (run / "trainer.json").write_text(json.dumps({**older, **written}))
    with pytest.raises(CheckpointError, match=r"trainer.json .*best_validation_score"):
        loaded(run)


def test_files_of_different_steps_are_refused(saved):
    run, *_ = saved
    trainer = json.loads((run / "trainer.json").read_text())
    (run / "trainer.json").write_text(json.dumps({**trainer, "step": 1}))
    with pytest.raises(CheckpointError, match=r"trainer.json is of step 1, model.safetensors is of step 2"):
        loaded(run)


def test_an_optimiser_of_another_model_is_refused(saved):
    run, *_ = saved
    held = mx.load(str(run / "optimizer.safetensors"))
    del held["mapper.energy_bias.m"]
    mx.save_safetensors(str(run / "optimizer.safetensors"), held, metadata={"trained_steps": "2"})
    with pytest.raises(CheckpointError, match=r"does not fit .* mapper\.energy_bias\.m"):
        loaded(run)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"step": 2, "plateau": {"best": 1, "bad": 2}}'])
def test_a_broken_trainer_state_is_named(saved, text):
    run, *_ = saved
    (run / "trainer.json").write_text(text)
    with pytest.raises(CheckpointError, match="trainer.json"):
        loaded(run)


def cut(name):
    def change(run):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2])

    return change


def with_values(name, **values):
    def change(run):
        (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **values}))

    return change


DAMAGES = {
    "model.safetensors: is cut off": cut("model.safetensors"),
    "optimizer.safetensors: is cut off": cut("optimizer.safetensors"),
    "tokenizer.json is not a tokenizer.json": cut("tokenizer.json"),
    "config.json: does not parse": cut("config.json"),
    "trainer.json is not the trainer state": cut("trainer.json"),
    "model.safetensors does not fit its config.json: ": with_values("config.json", lattice_width=4),
    "config.json: is of format_version 2, this energy_flow_mlx reads up to 1": with_values("config.json", format_version=2),
    "format_version='1' is not accepted": with_values("config.json", format_version="1"),
    "step is '2', accepted is int": with_values("trainer.json", step="2"),
    "best is 'NaN', accepted is float": with_values("trainer.json", plateau={"best": math.nan, "waited": 0, "factor": 1.0}),
    "'list' object is not a mapping": with_values("trainer.json", plateau=[]),
    "metrics.jsonl: line 1 is no object with a step": lambda run: (run / "metrics.jsonl").write_text("[1]\n"),
    "metrics.jsonl: line 1 is not JSON": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n"),
}


@pytest.mark.parametrize(("words", "change"), DAMAGES.items(), ids=DAMAGES.keys())
def test_a_damaged_run_is_refused_by_name(words, change, saved, capsys):
    change(saved[0])
    assert train.main(["--resume", str(saved[0]), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error


@pytest.mark.parametrize("part", ["parameter", "moment"])
def test_what_is_not_finite_is_not_saved(saved, part):
    run, model, optimiser, state = saved
    before = {name: (run / name).read_bytes() for name in checkpoint.FILES}
    if part == "parameter":
        model.mapper.energy_bias = mx.array([math.nan])
    else:
        optimiser.state["mapper"]["energy_bias"]["v"] = mx.array([math.inf])
    with pytest.raises(checkpoint.NonFiniteState, match=r"mapper\.energy_bias"):
        checkpoint.save(run, model, optimiser, model.config, state)
    assert {name: (run / name).read_bytes() for name in checkpoint.FILES} == before


@pytest.mark.parametrize(("name", "key"), [("model", "mapper.energy_bias"), ("optimizer", "mapper.energy_bias.m")])
def test_a_checkpoint_that_is_not_finite_is_refused(saved, name, key):
    run, *_ = saved
    path = run / f"{name}.safetensors"
    arrays, metadata = mx.load(str(path), return_metadata=True)
    save_arrays(path, {**arrays, key: mx.array([math.nan])}, metadata)
    with pytest.raises(CheckpointError, match=f"NaN or infinity is in .*{key}"):
        loaded(run)


def test_missing_files_are_named(saved, tmp_path):
    run, *_ = saved
    (run / "optimizer.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"optimizer.safetensors missing"):
        checkpoint.require(run)
    with pytest.raises(FileNotFoundError, match="no folder"):
        checkpoint.require(tmp_path / "absent")


def test_metrics_are_cut_to_the_step_and_half_lines_are_dropped(tmp_path):
    for step in (1, 2, 3):
        checkpoint.append_metrics(tmp_path, {"step": step, "loss": 1 / step, "bad": math.nan})
    with open(tmp_path / checkpoint.METRICS, "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in checkpoint.read_metrics(tmp_path)] == [1, 2, 3]
    checkpoint.cut_metrics(tmp_path, 2)
    assert checkpoint.read_metrics(tmp_path) == [
        {"step": 1, "loss": 1.0, "bad": None},
        {"step": 2, "loss": 0.5, "bad": None},
    ]
    checkpoint.append_metrics(tmp_path, {"step": 3})
    assert len(checkpoint.read_metrics(tmp_path)) == 3


def test_a_broken_line_of_metrics_is_named(tmp_path):
    (tmp_path / checkpoint.METRICS).write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2"):
        checkpoint.read_metrics(tmp_path)


def texts(folder):
    return {name: resolve(folder, name).read_text() for name in ("a", "b")}


def writers(text):
    return {name: lambda path: path.write_text(text) for name in ("a", "b")}


def test_a_folder_is_all_old_until_the_commit_and_all_new_after(tmp_path, monkeypatch):
    write_folder(tmp_path, writers("old"))
    (tmp_path / "other").write_text("stays")

    def fail(path):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path, {**writers("new"), "b": fail})
    assert texts(tmp_path) == {"a": "old", "b": "old"}
    assert not (tmp_path / INCOMING).exists()

    # Cut off after the commit and one of the two moves.
    import energy_flow_mlx.files as files

    moves = []
    replace = files.os.replace

    def once(source, target):
        if moves:
            raise KeyboardInterrupt
        moves.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", once)
        with pytest.raises(KeyboardInterrupt):
            write_folder(tmp_path, writers("new"))
    assert (tmp_path / COMPLETE).is_dir() and not (tmp_path / INCOMING).exists()
    assert texts(tmp_path) == {"a": "new", "b": "new"}
    assert {(tmp_path / name).read_text() for name in ("a", "b")} == {"new", "old"}

    settle(tmp_path)
    assert texts(tmp_path) == {"a": "new", "b": "new"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "other"]
    assert (tmp_path / "other").read_text() == "stays"
