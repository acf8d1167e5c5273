"""Threads, signals, full disks, two runs in one folder: no step and no result is lost."""

import os
import re
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest
from train.small import arguments, arrays, assert_same_arrays, small_config

from energy_flow_mlx import evaluate
from energy_flow_mlx.cli import reason
from energy_flow_mlx.lock import LOCK, locked
from energy_flow_mlx.train import checkpoint, progress, report, rescue
from energy_flow_mlx.train import command as train
from energy_flow_mlx.train import run as training_run
from energy_flow_mlx.train.interrupt import StopRequest
from energy_flow_mlx.train.step import TrainStep

FULL = OSError(28, "No space left on device", "somewhere")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without the curves and the other rows of the table, which take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "try_curves", lambda *_: None)
        patch.setattr(report, "simple_baselines", lambda data: {})
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(arguments(run)) == 0
    return run


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def at_launch(monkeypatch, number, act):
    """Call `act` while step `number`, counted from 1, is launched."""
    original = TrainStep.launch

    def launch(self, step, batches, rate):
        if step + 1 == number:
            act()
        return original(self, step, batches, rate)

    monkeypatch.setattr(TrainStep, "launch", launch)


def test_training_works_in_a_thread_and_from_python_with_a_text_as_folder(whole, tmp_path, capsys):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(training_run.train(small_config(), str(tmp_path / "run"), quiet=True)))
    thread.start()
    thread.join()
    assert codes == [0] and "energy flow (6 steps)" in capsys.readouterr().out
    assert_same_arrays(arrays(tmp_path / "run"), arrays(whole))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_save_as_ctrl_c_does_and_say_so_at_once(number, tmp_path, monkeypatch, capfd):
    before = signal.signal(number, signal.SIG_DFL)
    said = []

    def stop():
        os.kill(os.getpid(), number)
        said.append(capfd.readouterr().err)

    at_launch(monkeypatch, 3, stop)
    assert train.main(arguments(tmp_path / "run")) == 130
    signal.signal(number, before)
    assert "stopping: this step is finished and saved first" in said[0]
    assert checkpoint.read_metrics(tmp_path / "run")[-1]["step"] == 3
    assert '"step": 3,' in (tmp_path / "run" / "trainer.json").read_text()


def test_under_nohup_a_hangup_does_not_stop_a_run():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, before)


def test_ctrl_c_during_the_table_says_that_the_run_is_complete(copy, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "held_out", interrupted)
    assert train.main(["--resume", str(copy), "--quiet"]) == 130
    assert capsys.readouterr().err == f"interrupted: the run is complete and saved; for the table:\n  python -m energy_flow_mlx.evaluate {copy}\n"


@pytest.mark.parametrize("fault", [FULL, ValueError("no font")])
def test_a_figure_never_costs_a_result(copy, monkeypatch, capsys, fault):
    def fails(path, metrics):
        raise fault

    monkeypatch.setattr(report, "draw_curves", fails)
    monkeypatch.setattr(training_run, "try_curves", report.try_curves)
    assert train.main(["--resume", str(copy), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "energy flow (6 steps)" in captured.out
    assert captured.err.startswith(f"warning: {copy / 'curves.png'} is not drawn: ")


def rescued_to(text):
    return Path(re.search(r"--resume (.*)$", text).group(1))


@pytest.mark.parametrize("source", ["checkpoint", "metrics", "data"])
def test_steps_that_the_folder_does_not_take_are_saved_elsewhere(whole, tmp_path, monkeypatch, capsys, source):
    run = tmp_path / "run"
    saves, reads, lines = checkpoint.save, training_run.micro_batches, progress.append_metrics
    full = []

    def save(folder, *others):
        if full and folder == run:
            raise FULL
        saves(folder, *others)

    def append(folder, line):
        if full and source == "metrics" and folder == run:
            raise FULL
        lines(folder, line)

    def read(data, order, step, count):
        if source == "data" and step == 3:
            raise FULL
        return reads(data, order, step, count)

    (tmp_path / "elsewhere").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        patch.setattr(progress, "append_metrics", append)
        patch.setattr(training_run, "micro_batches", read)
        patch.setattr(rescue, "PLACES", ("$NOWHERE", str(tmp_path / "absent"), str(tmp_path / "elsewhere")))
        at_launch(patch, 3, lambda: full.append(True))
        assert train.main(arguments(run)) == 2
    said = capsys.readouterr().err
    done = {"checkpoint": 4, "metrics": 4, "data": 3}[source]
    assert said.startswith(f"error: somewhere: No space left on device; step {done} is saved, go on with:\n")
    there = rescued_to(said)
    assert there.parent == tmp_path / "elsewhere" and (there / checkpoint.METRICS).is_file()
    assert '"step": 2,' in (run / "trainer.json").read_text()
    assert train.main(["--resume", str(there), "--quiet"]) == 0
    assert_same_arrays(arrays(there), arrays(whole))


def test_the_schedule_goes_on_from_a_validation_that_could_not_be_written(tmp_path, monkeypatch, capsys):
    changes = {"learning_rate_schedule": "plateau", "plateau_patience": 0, "validation_interval": 1}
    assert train.main(arguments(tmp_path / "whole", **changes)) == 0
    lines = progress.append_metrics

    def append(folder, line):
        if line["step"] == 3 and "validation_cosine" in line:
            raise FULL
        lines(folder, line)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "append_metrics", append)
        assert train.main(arguments(tmp_path / "run", **changes)) == 2
    assert rescued_to(capsys.readouterr().err) == tmp_path / "run"
    assert train.main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert (tmp_path / "run" / "trainer.json").read_text() == (tmp_path / "whole" / "trainer.json").read_text()
    assert_same_arrays(arrays(tmp_path / "run"), arrays(tmp_path / "whole"))


def test_a_step_whose_loss_is_not_finite_is_not_saved_over_the_checkpoint(tmp_path, monkeypatch, capsys):
    run, reads, lines = tmp_path / "run", training_run.micro_batches, progress.append_metrics

    def spoilt(data, order, step, count):
        batches = reads(data, order, step, count)
        if step == 3:
            batches[0].input_embedding[0] = float("nan")
        return batches

    def append(folder, line):
        if line["step"] == 3:  # written when step 4, counted from 1, is launched already
            raise FULL
        lines(folder, line)

    monkeypatch.setattr(training_run, "micro_batches", spoilt)
    monkeypatch.setattr(progress, "append_metrics", append)
    assert train.main(arguments(run)) == 2
    assert capsys.readouterr().err == "error: somewhere: No space left on device\n"
    assert '"step": 2,' in (run / "trainer.json").read_text()


def test_an_error_that_passes_costs_nothing(whole, tmp_path, monkeypatch, capsys):
    run, saves, failed = tmp_path / "run", checkpoint.save, []

    def save(folder, model, optimiser, config, state):
        if state.step == 4 and not failed:
            failed.append(True)
            raise FULL
        saves(folder, model, optimiser, config, state)

    monkeypatch.setattr(checkpoint, "save", save)
    assert train.main(arguments(run)) == 2
    assert rescued_to(capsys.readouterr().err) == run
    assert train.main(["--resume", str(run), "--quiet"]) == 0
    assert_same_arrays(arrays(run), arrays(whole))


def test_metrics_that_cannot_be_written_are_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            checkpoint.append_metrics(tmp_path, {"step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert reason(caught.value) == f"{tmp_path / 'metrics.jsonl'}: File too large"


def test_where_no_folder_takes_the_steps_that_is_said(tmp_path, monkeypatch, capsys):
    saves = checkpoint.save

    def save(folder, model, optimiser, config, state):
        if state.step:
            raise FULL
        saves(folder, model, optimiser, config, state)

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(rescue, "PLACES", (str(tmp_path),))
    assert train.main(arguments(tmp_path / "run")) == 2
    assert "step 2 could not be saved elsewhere either: somewhere: No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_two_trainings_in_one_folder_are_refused(copy, tmp_path, capsys):
    before = arrays(copy)
    with locked(copy):
        assert train.main(["--resume", str(copy), "--quiet"]) == 2
        assert f"error: {copy} is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert_same_arrays(arrays(copy), before)
    with locked(tmp_path / "new"):
        assert train.main(arguments(tmp_path / "new")) == 2
        assert [path.name for path in (tmp_path / "new").iterdir()] == [LOCK]


def test_a_resume_to_fewer_steps_is_refused_and_one_to_as_many_says_so(copy, capsys):
    assert train.main(["--resume", str(copy), "--training-steps", "4"]) == 2
    assert f"training_steps=4 is not accepted: {copy} has done 6 steps already" in capsys.readouterr().err
    assert train.main(["--resume", str(copy)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{copy} is complete: all 6 steps are done (--training-steps goes on); evaluating it once more\n")
    assert captured.err == ""


def test_lines_stand_for_the_bar_where_there_is_no_terminal(tmp_path, capsys):
    flags = [word for word in arguments(tmp_path / "run", log_interval=3, validation_interval=4) if word != "--quiet"]
    assert train.main(flags) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" 0.")[0] for line in lines] == ["step 3/6  loss", "step 4/6  val cosine", "step 6/6  loss", "step 6/6  val cosine"]


@pytest.mark.parametrize("slow", ["rename", "replace"])
def test_a_signal_during_a_slow_rename_ends_the_run_after_it(whole, tmp_path, monkeypatch, slow):
    run, original, signalled = tmp_path / "run", getattr(os, slow), []

    def rename(source, target):
        if (run / checkpoint.METRICS).is_file() and not signalled:  # in the first checkpoint after the start
            signalled.append(os.kill(os.getpid(), signal.SIGTERM))
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, slow, rename)
        assert train.main(arguments(run)) == 130
    assert '"step": 2,' in (run / "trainer.json").read_text()
    assert train.main(["--resume", str(run), "--quiet"]) == 0
    assert_same_arrays(arrays(run), arrays(whole))


def test_a_slow_disk_does_not_count_as_slow_training(tmp_path, monkeypatch):
    """Saving takes an hour by a clock that nothing else moves."""
    now, saves = [0.0], checkpoint.save

    def save(*arguments):
        saves(*arguments)
        now[0] += 3600

    def launch(self, step, batches, rate, original=TrainStep.launch):
        now[0] += 2.0
        return original(self, step, batches, rate)

    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(TrainStep, "launch", launch)
    assert train.main(arguments(tmp_path / "run")) == 0
    rates = [line["samples_per_second"] for line in checkpoint.read_metrics(tmp_path / "run") if "loss" in line]
    assert len(rates) == 6 and min(rates) >= 1.0  # 4 pairs in 2 s; where two steps were launched before one was read, in 4 s


def test_the_table_of_other_data_says_what_was_trained_on_what(copy, tmp_path, capsys):
    texts = [f'{{"premise": "a dog {n} runs", "hypothesis": "an animal {n} moves"}}\n' for n in range(60)]
    (tmp_path / "other.jsonl").write_text("".join(texts))
    code = evaluate.main([str(copy), "--data", str(tmp_path / "other.jsonl")])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "\n(the energy flow was trained on builtin, the other rows are fitted on the training pairs of " in captured.out


def test_a_step_whose_report_is_not_written_is_validated_before_it_is_saved(whole, tmp_path, monkeypatch):
    run, lines, failed = tmp_path / "run", progress.append_metrics, []

    def append(folder, line):
        if line["step"] == 6 and not failed:
            failed.append(line)
            raise FULL
        lines(folder, line)

    monkeypatch.setattr(progress, "append_metrics", append)
    assert train.main(arguments(run)) == 2 and "loss" in failed[0]
    assert train.main(["--resume", str(run), "--quiet"]) == 0
    assert (run / "trainer.json").read_text() == (whole / "trainer.json").read_text()
