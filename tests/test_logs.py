"""What is noted on standard error beside a result, and that a bar is never two."""

import logging
import sys
from contextlib import contextmanager

import pytest
from tqdm import tqdm
from train.small import arguments, small_config, validate_as

from energy_flow_mlx import bar, logs
from energy_flow_mlx.bar import Bar
from energy_flow_mlx.distributed import World
from energy_flow_mlx.train import Callback, Trainer
from energy_flow_mlx.train import command as train

LOGGER = logging.getLogger("energy_flow_mlx.train.report")


@pytest.mark.parametrize(("level", "lines"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_notes_from_a_level_on_are_shown_and_afterwards_nothing(level, lines, capsys):
    with logs.shown(level):
        LOGGER.debug("deep")
        LOGGER.info("took %s", "a run")
        LOGGER.warning("no %s", "figure")
        logging.getLogger("another").info("not ours")
    assert capsys.readouterr().err.splitlines() == ["deep", "took a run", "warning: no figure"][3 - lines :]
    handlers = logging.getLogger("energy_flow_mlx").handlers
    assert not [each for each in handlers if isinstance(each, logs._Notes)]


def test_a_note_stands_above_the_bar(monkeypatch, capsys):
    for module in (bar, logs):
        monkeypatch.setattr(module, "in_terminal", lambda file=None: True)
    with logs.shown("info"), Bar(total=2, quiet=False, file=sys.stderr, ncols=40) as shown:
        shown.update()
        LOGGER.warning("no figure")
    pieces = capsys.readouterr().err.split("\r")
    assert "warning: no figure\n" in pieces  # at the start of a line that the bar has left


@pytest.mark.parametrize(("options", "said"), [([], "warning: nothing to draw is not drawn"), (["--log-level", "error"], "")])
def test_the_command_hears_log_level(options, said, tmp_path, monkeypatch, capsys):
    validate_as(monkeypatch, {})
    monkeypatch.setattr("energy_flow_mlx.train.run.try_curves", lambda *_: LOGGER.warning("nothing to draw is not drawn"))
    assert train.main([*arguments(tmp_path / "run", training_steps=1), *options]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ([said, said] if said else [])
    assert "energy flow (1 steps)" in captured.out


@pytest.mark.parametrize(("options", "said"), [([], ["error: no disk"]), (["--log-level", "debug"], ["error: no disk"])])
def test_of_several_processes_the_first_one_notes(options, said, monkeypatch, capsys):
    @contextmanager
    def second(timeout):
        world = World()
        world.rank = 1
        yield world

    def follow(world):
        LOGGER.warning("data has no texts")
        LOGGER.error("no disk")
        return 0

    monkeypatch.setattr("energy_flow_mlx.train.command.joined", second)
    monkeypatch.setattr("energy_flow_mlx.train.command.follow", follow)
    assert train.main(options) == 0
    assert capsys.readouterr().err.splitlines() == said


def test_another_level_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--log-level", "loud"])
    assert stop.value.code == 2
    assert "'loud'" in capsys.readouterr().err


def test_a_run_in_a_terminal_has_one_bar(tmp_path, monkeypatch):
    class Counted(Callback):
        def on_validation(self, step, result):
            counts.append(len([each for each in tqdm._instances if not each.disable]))

    counts = []
    validate_as(monkeypatch, {})
    monkeypatch.setattr(bar, "in_terminal", lambda file=None: True)
    monkeypatch.setattr("energy_flow_mlx.train.progress.in_terminal", lambda: True)
    Trainer(small_config(training_steps=4), callbacks=[Counted()], out=tmp_path / "run").fit()
    assert counts == [1, 1]
