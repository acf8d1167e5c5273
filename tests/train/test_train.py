"""Whole runs: resume, Ctrl-C, kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from train.small import FIELDS, arguments, arrays, assert_same_arrays

from energy_flow_mlx import EnergyFlow, evaluate
from energy_flow_mlx.files import COMPLETE, INCOMING, resolve
from energy_flow_mlx.train import checkpoint
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train import run as training_run
from energy_flow_mlx.train.step import TrainStep


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of six steps."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(arguments(run)) == 0
    return run


def metrics(run):
    """The lines of metrics.jsonl without what depends on the machine."""
    timed = ("samples_per_second", "peak_memory_bytes")
    return [{k: v for k, v in line.items() if k not in timed} for line in checkpoint.read_metrics(run)]


def assert_same_run(run, other):
    assert_same_arrays(arrays(run), arrays(other))
    assert metrics(run) == metrics(other)
    for name in ("trainer.json", "tokenizer.json", "config.json"):
        assert (run / name).read_text() == (other / name).read_text()


def test_a_run_leaves_its_files_and_a_table(whole, capsys):
    assert sorted(path.name for path in whole.iterdir()) == sorted([*checkpoint.FILES, "metrics.jsonl", "curves.png", "results.json", "best"])
    steps = [line["step"] for line in metrics(whole) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in metrics(whole) if "validation_cosine" in line] == [2, 4, 6]
    assert evaluate.main([str(whole)]) == 0
    table = capsys.readouterr().out
    for words in ("input itself", "mean target", "ridge regression", "energy flow (6 steps)"):
        assert words in table


def test_the_same_seed_gives_the_same_run_and_another_seed_does_not(whole, tmp_path):
    assert train.main(arguments(tmp_path / "again")) == 0
    assert_same_run(tmp_path / "again", whole)
    assert train.main(arguments(tmp_path / "other", seed=1)) == 0
    assert not all((a == b).all() for a, b in zip(arrays(tmp_path / "other").values(), arrays(whole).values(), strict=True))


def stop_after(monkeypatch, steps):
    """Ask for a stop, as Ctrl-C does, while step `steps` runs."""
    original = TrainStep.launch

    def launch(self, step, batches, rate):
        if step + 1 == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step, batches, rate)

    monkeypatch.setattr(TrainStep, "launch", launch)


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_stop_and_resume_equals_an_uninterrupted_run(whole, tmp_path, monkeypatch, capsys, steps):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        assert train.main(arguments(run)) == 130
    assert f"python -m energy_flow_mlx.train --resume {run}" in capsys.readouterr().out
    assert json.loads((run / "trainer.json").read_text())["step"] == steps
    assert train.main(["--resume", str(run), "--quiet"]) == 0
    assert_same_run(run, whole)


def test_resume_equals_with_everything_that_has_state_switched_on(tmp_path, monkeypatch):
    changes = {
        "learning_rate_schedule": "plateau",
        "plateau_patience": 0,
        "validation_interval": 1,
        "gradient_accumulation_steps": 2,
        "gradient_clip_per_tensor": 0.5,
        "movement_based_spawn": True,
        "spawn_movement_threshold_ratio": 0.05,
        "gradient_checkpointing": True,
        "displacement_warmup_steps": 1,
        "displacement_scale_update_interval": 1,
        "displacement_scale_min": 0.2,
    }
    assert train.main(arguments(tmp_path / "whole", **changes)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        assert train.main(arguments(tmp_path / "run", **changes)) == 130
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    changes = {"learning_rate_schedule": "constant"}
    assert train.main(arguments(tmp_path / "long", **changes)) == 0
    assert train.main(arguments(tmp_path / "run", **{**changes, "training_steps": 4})) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet", "--training-steps", "6"]) == 0
    assert_same_arrays(arrays(tmp_path / "run"), arrays(tmp_path / "long"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["training_steps"] == 6


def test_a_finished_run_resumed_changes_nothing(whole, tmp_path, capsys):
    before = arrays(whole)
    capsys.readouterr()
    assert train.main(["--resume", str(whole), "--quiet"]) == 0
    assert "energy flow (6 steps)" in capsys.readouterr().out
    assert_same_arrays(arrays(whole), before)


def test_a_non_finite_loss_ends_the_run_and_leaves_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    original = training_run.micro_batches

    def spoilt(data, order, step, count):
        batches = original(data, order, step, count)
        if step == 3:
            batches[0].input_embedding[0] = float("nan")
        return batches

    monkeypatch.setattr(training_run, "micro_batches", spoilt)
    assert train.main(arguments(tmp_path / "run")) == 1
    assert "step 3: the loss is nan" in capsys.readouterr().err
    assert EnergyFlow.from_pretrained(tmp_path / "run").trained_steps == 2


def command(*argv):
    return [sys.executable, "-m", "energy_flow_mlx.train", *argv]


def test_ctrl_c_in_a_terminal_saves_and_exits_130(tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(*arguments(run, training_steps=100_000, validation_interval=100_000)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (run / checkpoint.METRICS).is_file(), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"--resume {run}" in out and "Traceback" not in err
    step = json.loads((run / "trainer.json").read_text())["step"]
    assert step >= 1 and EnergyFlow.from_pretrained(run).trained_steps == step
    assert max(line["step"] for line in checkpoint.read_metrics(run)) == step


# Kills itself where the write stands: while a file is written, before and after the commit, between the moves.
_KILLED = """
import os, signal, sys
from energy_flow_mlx import files
from energy_flow_mlx.train import command as train
countdown = int(sys.argv.pop(1))
def counted(original):
    def call(*arguments):
        global countdown
        if {within}:
            countdown -= 1
            if countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)
    return call
os.replace, os.rename, files._flush = counted(os.replace), counted(os.rename), counted(files._flush)
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("point", [1, 14, 20, 27, 34, 41])
def test_a_kill_anywhere_in_a_write_leaves_a_consistent_checkpoint(whole, tmp_path, point):
    """The run kills itself at the `point`-th flush, rename or move of its writes."""
    run = tmp_path / "run"
    process = subprocess.run(
        [sys.executable, "-c", _KILLED.format(within="True"), str(point), *arguments(run)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    if not resolve(run, "model.safetensors").is_file():
        assert point == 1  # the first write was not committed yet
        return
    step = json.loads(resolve(run, "trainer.json").read_text())["step"]
    assert step % FIELDS["checkpoint_interval"] == 0
    assert EnergyFlow.from_pretrained(run).trained_steps == step
    assert train.main(["--resume", str(run), "--quiet"]) == 0
    assert not (run / COMPLETE).exists() and not (run / INCOMING).exists()
    assert_same_run(run, whole)


def wait_for(done, process):
    for _ in range(600):
        if done():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    raise AssertionError("nothing happened in a minute")
