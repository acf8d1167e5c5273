"""Several seeds by one command."""

import json

import pytest
from train.small import arguments

from energy_flow_mlx import Run, evaluate
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train import report
from energy_flow_mlx.train import run as training_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds, the second of which was begun already."""
    base = tmp_path_factory.mktemp("runs") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curves", lambda *_: None)
        assert train.main([*arguments(base.with_name("small-seed1"), training_steps=2), "--seed", "1"]) == 0
        assert train.main([*arguments(base, training_steps=4), "--seeds", "0, 1"]) == 0
    return base


def test_each_seed_has_a_run_and_one_that_was_begun_goes_on(runs):
    first, second = (Run.load(runs.with_name(f"small-seed{seed}")) for seed in (0, 1))
    assert first.config.replace(seed=1) == second.config
    assert (first.results.steps, first.results.resumed_at) == (4, 0)
    assert (second.results.steps, second.results.resumed_at) == (4, 2)
    assert first.results.seconds.keys() == {"training", "evaluation"}
    assert first.results.made["command"] == first.config.command()
    assert first.evaluation == first.results.splits["test"]["energy flow (4 steps)"]


def test_what_is_complete_is_not_trained_again(runs, monkeypatch, capsys):
    monkeypatch.setattr(training_run, "loop", None)
    command = [*arguments(runs, training_steps=4), "--seeds", "1,0"]
    assert train.main(command) == 0
    assert "is complete" not in capsys.readouterr().out, "--quiet"
    assert train.main([word for word in command if word != "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "small-seed1 is complete\n" in out and "  1 0 " in next(line for line in out.splitlines() if line.startswith("small "))
    assert train.main([*arguments(runs, training_steps=4, dropout=0.5), "--seeds", "0"]) == 2
    assert "was trained with other values of dropout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [(["--seeds", "0,0"], "'0,0'"), (["--seeds", "a"], "such as 0,1,2"), (["--seeds", "9" * 5000], "such as 0,1,2"), (["--seeds", "0", "--seed", "1"], "--seed"),
     (["--seeds", "0", "--resume", "x"], "--resume")],
)  # fmt: skip
def test_what_is_not_accepted_is_named(given, told, capsys):
    assert train.main(given) == 2
    assert told in capsys.readouterr().err


def test_evaluate_prints_what_results_hold(runs, capsys):
    run = runs.with_name("small-seed0")
    capsys.readouterr()
    assert evaluate.main([str(run), "--json"]) == 0
    printed, held = json.loads(capsys.readouterr().out), json.loads((run / "results.json").read_text())
    assert printed["splits"] == held["splits"] and printed["made"] == held["made"]
    assert held["seconds"]["training"] > 0  # evaluation leaves the training's own file alone
