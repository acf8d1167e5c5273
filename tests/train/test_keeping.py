"""Checkpoints beside the last one: the best, and the last few."""

import json
import os
import shutil

import mlx.core as mx
import numpy as np
import pytest
from train.small import arguments, arrays, assert_same_arrays, validate_as

from energy_flow_mlx import EnergyFlow, Run, evaluate
from energy_flow_mlx.train import checkpoint, keeping, progress, rescue
from energy_flow_mlx.train import command as train

FULL = OSError(28, "No space left on device", "somewhere")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Validations whose best is in the middle."""
    with pytest.MonkeyPatch.context() as patch:
        validate_as(patch, {2: 0.1, 4: 0.3, 6: 0.2})
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that keeps two checkpoints."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(arguments(run, keep_checkpoints=2)) == 0
    return run


def loaded(folder):
    return {name: np.array(value) for name, value in mx.load(str(folder / "model.safetensors")).items()}


def test_the_best_model_and_the_last_checkpoints_are_kept(whole):
    assert sorted(path.name for path in (whole / "best").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    best = EnergyFlow.from_pretrained(whole / "best")
    assert best.trained_steps == 4 and best.text_encoder.tokeniser is not None
    assert json.loads((whole / "trainer.json").read_text())["best_step"] == 4
    folders = keeping.kept(whole)
    assert {step: folder.name for step, folder in folders.items()} == {4: "0000004", 6: "0000006"}
    assert_same_arrays(arrays(folders[6]), arrays(whole))
    assert_same_arrays(loaded(folders[4]), loaded(whole / "best"))
    assert Run.load(whole / "best").config == Run.load(whole).config


def test_a_kept_checkpoint_is_a_run_to_go_on_with(whole, tmp_path):
    fork = tmp_path / "fork"
    shutil.copytree(keeping.at_step(whole, 4), fork)
    assert train.main(["--resume", str(fork), "--quiet", "--keep", "0"]) == 0
    assert_same_arrays(arrays(fork), arrays(whole))
    with pytest.raises(FileNotFoundError, match=r"steps holds no checkpoint of step 3: there are 4, 6"):
        keeping.at_step(whole, 3)
    with pytest.raises(FileNotFoundError, match="there is none; train --keep N"):
        keeping.at_step(fork, 4)


def test_a_resumed_run_keeps_what_a_kill_left_undone(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "steps" / "0000006" / "trainer.json").unlink()  # killed in the middle
    (run / "steps" / "notes").mkdir()
    assert list(keeping.kept(run)) == [4]
    assert train.main(["--resume", str(run), "--quiet", "--keep", "1"]) == 0
    assert sorted(path.name for path in (run / "steps").iterdir()) == ["0000006", "notes"]
    assert_same_arrays(arrays(run / "steps" / "0000006"), arrays(run))
    keeping.keep(run, 6, 1)  # between links to one file a rename does nothing
    assert sorted(path.name for path in (run / "steps" / "0000006").iterdir()) == sorted(checkpoint.FILES)


def test_where_there_are_no_links_files_are_copied(whole, tmp_path, monkeypatch):
    def refused(source, target):
        raise PermissionError(1, "Operation not permitted")

    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(os, "link", refused)
    keeping.keep(tmp_path / "run", 7, 1)
    assert_same_arrays(arrays(tmp_path / "run" / "steps" / "0000007"), arrays(whole))


@pytest.mark.parametrize("what", ["save_best", "keep"])
def test_a_full_disk_beside_the_run_loses_no_step_and_no_best_model(what, tmp_path, monkeypatch, capsys):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    originals = {name: getattr(keeping, name) for name in ("save_best", "keep")}
    save, full = checkpoint.save, []

    def fails(folder, *rest):
        if folder == run and full:
            raise FULL
        originals[what](folder, *rest)

    def saved(folder, *rest):
        if folder == run and full and what == "save_best":
            raise FULL
        save(folder, *rest)

    def noted(self, step, result, original=progress.Progress.validated):
        original(self, step, result)
        full.extend([step] if step == 4 else [])

    with monkeypatch.context() as patch:
        patch.setattr(keeping, what, fails)
        patch.setattr(checkpoint, "save", saved)
        patch.setattr(progress.Progress, "validated", noted)
        patch.setattr(rescue, "PLACES", (str(elsewhere),))
        assert train.main(arguments(run, keep_checkpoints=1)) == 2
    there = run if what == "keep" else next(elsewhere.iterdir())
    assert capsys.readouterr().err.endswith(f"step 4 is saved, go on with:\n  python -m energy_flow_mlx.train --resume {there}\n")
    assert EnergyFlow.from_pretrained(there / "best").trained_steps == 4
    assert train.main(["--resume", str(there), "--quiet"]) == 0
    assert EnergyFlow.from_pretrained(there / "best").trained_steps == 4


def test_a_run_that_is_saved_elsewhere_takes_its_best_model_along(tmp_path, monkeypatch, capsys):
    run, save = tmp_path / "run", checkpoint.save

    def fails(folder, *rest):
        if folder == run and rest[-1].step == 6:
            raise FULL
        save(folder, *rest)

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(checkpoint, "save", fails)
    monkeypatch.setattr(rescue, "PLACES", (str(tmp_path / "elsewhere"),))
    assert train.main(arguments(run)) == 2
    there = next((tmp_path / "elsewhere").iterdir())
    assert_same_arrays(loaded(there / "best"), loaded(run / "best"))


def test_results_of_another_model_are_replaced(whole, tmp_path):
    best = tmp_path / "best"
    shutil.copytree(whole / "best", best)
    shutil.copyfile(whole / "results.json", best / "results.json")
    assert evaluate.main([str(best)]) == 0
    assert Run.load(best).results.steps == 4
