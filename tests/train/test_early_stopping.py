"""A run that ends because its validations do not get better."""

import json
import shutil

import pytest
from train.small import arguments, arrays, assert_same_arrays, small_config, validate_as

from energy_flow_mlx.train import Trainer, seeds
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train.checkpoint import TrainerState, read_state

LONG = {"training_steps": 12, "checkpoint_interval": 4}


@pytest.fixture(scope="module", autouse=True)
def validations():
    with pytest.MonkeyPatch.context() as patch:
        validate_as(patch, {2: 0.3, 4: 0.2, 6: 0.1, 8: 0.4})
        yield


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "ended"
    assert train.main(arguments(run, early_stopping=2, **LONG)) == 0
    return run


def test_a_run_ends_saved_after_its_validations_without_a_better_one(ended, capsys):
    assert (read_state(ended).step, read_state(ended).best_step) == (6, 2)
    assert train.main(["--resume", str(ended)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{ended} is complete: early_stopping=2 ended it at step 6 (--early-stopping 0 goes on); evaluating it once more\n")
    assert f"ended at step 6: 2 validations without a better cosine; the best cosine is 0.3000, of step 2; its model is in {ended / 'best'}\n" in said.out
    assert "energy flow (6 steps)" in said.out and "memory of the run" not in said.out and said.err == ""
    assert train.main(["--resume", str(ended), "--quiet"]) == 0
    assert said.out.endswith(table := capsys.readouterr().out) and table.startswith("8 held-out test pairs of ")
    assert json.loads((ended / "results.json").read_text())["steps"] == 6


def test_a_run_that_was_stopped_decides_the_same(ended, tmp_path):
    run = tmp_path / "run"
    trainer = Trainer(small_config(early_stopping=2, **LONG), out=run, quiet=True)
    codes = []
    while not codes or codes[-1] == 130:
        trainer.stop()
        trainer.fit()
        codes.append(trainer.exit_code)
    assert codes == [130] * 5 + [0]
    assert_same_arrays(arrays(run), arrays(ended))


def test_it_goes_on_when_asked_and_a_better_validation_starts_the_count_anew(ended, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ended, run)
    assert train.main(["--resume", str(run), "--quiet", "--early-stopping", "3"]) == 0
    assert (read_state(run).step, read_state(run).best_step) == (12, 8)


def test_a_run_of_several_seeds_that_ended_early_is_complete(ended):
    config = small_config(early_stopping=2, **LONG)
    assert seeds._complete(ended, config)
    assert not seeds._complete(ended, config.replace(early_stopping=3))


@pytest.mark.parametrize(
    ("step", "best", "patience", "interval", "exhausted"),
    [(6, 2, 2, 2, True), (5, 2, 2, 2, False), (6, 2, 3, 2, False), (6, 2, 0, 2, False), (4, 0, 2, 2, True), (6, 3, 2, 2, True), (8, 5, 2, 3, False)],
)  # fmt: skip
def test_validations_since_the_best_are_counted(step, best, patience, interval, exhausted):
    """The best of them may be one after the last step of a run that then went on, between two others."""
    state = TrainerState(step, best_step=best)
    assert state.exhausted(small_config(early_stopping=patience, validation_interval=interval)) is exhausted
