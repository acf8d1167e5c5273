"""--report-to: TensorBoard's event files read back, and Weights & Biases offline."""

import importlib.util
import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from train.small import arguments, small_config, validate_as

from energy_flow_mlx import ConfigError, Run
from energy_flow_mlx.train import Trainer, checkpoint, reporters
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train.step import TrainStep


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    validate_as(monkeypatch, {2: 0.1, 4: 0.3, 6: 0.2})


def killed(monkeypatch, step):
    """A run that ends without saving while step `step`, counted from 1, is launched, as by a second Ctrl-C."""
    original = TrainStep.launch

    def launch(self, at, batches, rate):
        if at + 1 == step:
            raise KeyboardInterrupt
        return original(self, at, batches, rate)

    monkeypatch.setattr(TrainStep, "launch", launch)


def wanted(run):
    """Steps and values of metrics.jsonl by the tags of a reporter."""
    found = {}
    for line in checkpoint.read_metrics(run):
        for name, value in line.items():
            tag = name.replace("validation_", "validation/") if "validation_" in name else f"train/{name}"
            found.setdefault(tag, []).append((line["step"], value))
    del found["train/step"]
    return found


def test_tensorboard_goes_on_after_a_kill_without_a_gap_or_doubled_steps(tmp_path, monkeypatch):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed(patch, 6)
        assert train.main(arguments(run, report_to="tensorboard", checkpoint_interval=3, validation_interval=2)) == 130
    assert checkpoint.read_state(run).step == 3 and checkpoint.read_metrics(run)[-1]["step"] == 4
    assert train.main(["--resume", str(run), "--quiet"]) == 0
    events = reading.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    lines = wanted(run)
    assert found.keys() == lines.keys() and len(lines["train/loss"]) == 6
    for tag, values in lines.items():
        np.testing.assert_allclose(found[tag], values, rtol=1e-6, err_msg=tag)


def test_a_stopped_run_has_every_step_in_its_log(tmp_path, monkeypatch):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard")
    original = TrainStep.launch

    def launch(self, at, batches, rate):
        if at == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, at, batches, rate)

    monkeypatch.setattr(TrainStep, "launch", launch)
    run = tmp_path / "run"
    assert train.main(arguments(run, report_to="jsonl,tensorboard")) == 130
    events = reading.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert Run.load(run).config.reporters == ["jsonl", "tensorboard"]


class Wandb:
    """Stands for the package where it is not installed."""

    Settings = dict
    Error = type("Error", (Exception,), {})

    def __init__(self, fails=False):
        self.begun, self.logged, self.finished, self.fails = [], [], 0, fails

    def init(self, **options):
        if self.fails:
            raise self.Error("no key")
        self.begun.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_wandb_gets_the_configuration_and_every_number_and_goes_on_with_its_run(tmp_path, monkeypatch):
    wandb, run = Wandb(), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=name))
    assert train.main(arguments(run, report_to="wandb", training_steps=2)) == 0
    assert train.main(["--resume", str(run), "--quiet", "--training-steps", "4"]) == 0
    first, second = wandb.begun
    assert first["id"] == second["id"] and first["resume"] == "allow" and first["name"] == "run" and first["dir"] == run
    assert first["config"] == {**Run.load(run).config.to_dict(), "training_steps": 2}
    assert wandb.finished == 2
    logged = {}
    for step, values in wandb.logged:
        for tag, value in values.items():
            logged.setdefault(tag, []).append((step, value))
    lines = wanted(run)
    assert logged.keys() == lines.keys()
    for tag, values in lines.items():
        np.testing.assert_allclose(logged[tag], values, err_msg=tag)
    monkeypatch.setitem(sys.modules, "wandb", Wandb(fails=True))
    with pytest.raises(ConfigError, match="report_to=wandb: wandb does not begin: no key"):
        Trainer(Run.load(run).config, out=run, resume=True, quiet=True).fit()


def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="pip install wandb: a stand-in is tested above")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    assert train.main(arguments(run, report_to="wandb", training_steps=2)) == 0
    (records,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    content = records.read_bytes()
    assert b"validation/cosine" in content and b"train/loss" in content
    assert records.stem == f"run-{(run / 'wandb' / 'run-id.txt').read_text()}"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["absent", "a folder of that name"])
def test_a_missing_package_is_named_with_its_extra_before_anything_is_done(name, spec, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: spec)
    assert train.main(arguments(tmp_path / "run", report_to=f"jsonl, {name}")) == 2
    said = capsys.readouterr().err
    assert said == f"error: report_to=jsonl, {name}: {name} is not installed; pip install 'energy-flow-mlx[{name}]'\n"
    assert not list(tmp_path.iterdir())


def test_an_unknown_name_is_refused_with_those_there_are(tmp_path, capsys):
    assert train.main(arguments(tmp_path / "run", report_to="tensorbord")) == 2
    assert "report_to='tensorbord' is not accepted: it takes names of jsonl, tensorboard, wandb" in capsys.readouterr().err


def test_what_is_opened_is_closed_where_the_next_one_fails(tmp_path, monkeypatch):
    closed = []

    def made(folder, config, start):
        return SimpleNamespace(close=lambda: closed.append(start))

    def fails(folder, config, start):
        raise ConfigError("no")

    monkeypatch.setattr(reporters, "_REPORTERS", {"tensorboard": made, "wandb": fails})
    config = small_config(report_to="tensorboard,wandb")
    with pytest.raises(ConfigError), reporters.reporting(config, tmp_path, 3):
        pass
    assert closed == [3]
