"""--resume latest and --resume best."""

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from energy_flow_mlx.train import command as train
from energy_flow_mlx.train.checkpoint import CheckpointError, TrainerState
from energy_flow_mlx.train.found import found_run


def make(name, step=0, cosine=None, best=0, saved=0, inside=""):
    """The trainer's state of a run, as a checkpoint holds it."""
    folder = Path("runs", name, inside)
    folder.mkdir(parents=True)
    state = {**asdict(TrainerState(step, best_step=best)), "best_validation_score": cosine}
    state["plateau"]["best"] = None
    (folder / "trainer.json").write_text(json.dumps(state))
    os.utime(folder / "trainer.json", (saved, saved))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_newest_checkpoint_and_the_best_validation_are_found():
    make("first", 40, 0.5, 30, saved=300)
    make("second", 90, 0.7, 80, saved=200)
    make("third", 10, saved=400, inside=".complete")  # killed while its first checkpoint was moved into place
    Path("runs", "notes").mkdir()
    assert found_run("latest") == (Path("runs/third"), "--resume latest: runs/third, step 10")
    assert found_run("best") == (Path("runs/second"), "--resume best: runs/second, step 90, the best validation cosine 0.7000 at step 80")


def test_where_there_is_none_that_is_said():
    for name in ("latest", "best"):
        with pytest.raises(FileNotFoundError, match=f"--resume {name}: there is no run in runs/"):
            found_run(name)
    make("unvalidated")
    with pytest.raises(FileNotFoundError, match="there is no run that was validated in runs/"):
        found_run("best")


def test_a_run_that_cannot_be_read_is_named():
    make("good", 40, 0.5, 30)
    make("bad")
    Path("runs/bad/trainer.json").write_text("{")
    with pytest.raises(CheckpointError, match="runs/bad/trainer.json"):
        found_run("latest")


@pytest.mark.parametrize(
    ("given", "resumed"), [("latest", "runs/new"), ("best", "runs/old"), ("./latest", "latest"), ("./best", "best"), ("runs/old", "runs/old")]
)
def test_the_command_says_which_run_it_took_and_a_path_is_a_path(given, resumed, capsys):
    make("old", 40, 0.5, 30, saved=1)
    make("new", 10, 0.4, 10, saved=2)
    assert train.main(["--resume", given]) == 2  # none of them has more than this file
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (2 if given in ("latest", "best") else 1)
    assert said[0].startswith(f"--resume {given}: {resumed}, step ") or len(said) == 1
    assert re.match(rf"error: {resumed} (holds no checkpoint to resume|is no folder)", said[-1])
    assert train.main(["--resume", given, "--quiet"]) == 2
    assert capsys.readouterr().err.splitlines() == said[-1:]
