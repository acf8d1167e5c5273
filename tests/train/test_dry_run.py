"""--dry-run says what a run would be, and writes nothing."""

import re

import pytest
from mlx.utils import tree_flatten
from train.small import arguments, small_config, validate_as

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.train import Trainer
from energy_flow_mlx.train import command as train


def tree(folder):
    """Every path below a folder, with the time of its last change and what is in it."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.parametrize("begun", [False, True], ids=["new", "resumed"])
def test_nothing_is_written_and_everything_told(begun, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    validate_as(monkeypatch, {})
    run = tmp_path / "run"
    if begun:
        assert train.main(arguments(run, training_steps=2)) == 0
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 9}\n')  # which a resumed run cuts off
        capsys.readouterr()
    before = tree(tmp_path)
    given = ["--resume", str(run), "--training-steps", "40"] if begun else [*arguments(run), "--training-steps", "42"]
    assert train.main([*given, "--keep", "3", "--report-to", "jsonl", "--dry-run"]) == 0
    assert tree(tmp_path) == before
    said = capsys.readouterr()
    assert said.err == ""
    number = sum(array.size for _, array in tree_flatten(EnergyFlow(small_config()).parameters()))
    for words in (
        "configuration: the preset tiny, but for\n",
        r"\n  lattice_width +3 \(preset: 8\)\n",
        rf"\nparameters: {number:,}, of which [\d,]+ are trained\n",
        r"\n  carrier +[\d,]+ +\([\d,]+ trained\)\n",
        r"memory of a step: \d+\.\d\d GB expected",
        rf"time of a step: .* s in a trial of 10 .* {38 if begun else 42} steps take about \d+ seconds",
        rf"what a run writes in {run}:\n  config.json, model.safetensors, .*: 0.\d MB, at the start, every 2 steps",
        r"\n  steps/: 3 times 0.\d MB",
        r"\nnothing was written \(--dry-run\)\n$",
    ):
        assert re.search(words, said.out), words


def test_it_refuses_what_a_run_refuses(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    for given, words in (
        (["--out", str(tmp_path)], "is not empty"),
        (["--data", "nowhere", "--out", str(tmp_path / "run")], "data must be builtin"),
        (["--seeds", "0,1"], "--dry-run is not accepted with --seeds"),
    ):
        assert train.main(["--dry-run", *given]) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_trainer_that_was_tried_trains_as_one_that_was_not(tmp_path, monkeypatch):
    validate_as(monkeypatch, {})
    cosines = []
    for name, tried in (("first", True), ("second", False)):
        trainer = Trainer(small_config(training_steps=2), out=tmp_path / name, quiet=True)
        if tried:
            assert "parameters: " in trainer.dry_run()
        cosines.append(trainer.fit().evaluation.cosine)
    assert cosines[0] == cosines[1]
