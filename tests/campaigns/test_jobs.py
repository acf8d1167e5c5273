"""The campaigns' own checks notice what they are there to notice."""

import numpy as np
import pytest
from jobs import Cache, Conversion, Training, contents, leftovers
from soak import _slope
from train.small import arguments

from energy_flow_mlx.train import command as train
from energy_flow_mlx.train import report


def test_a_cache_that_lost_texts_or_does_not_load_is_noticed(tmp_path):
    job = Cache(tmp_path, most=10)
    announced = []
    assert job.work(announced.append) == 0 and announced == [5, 10]
    assert job.check(10) == []
    assert job.check(11) == ["10 texts, 11 were announced"]
    job.path.write_bytes(job.path.read_bytes()[:-1])
    with pytest.raises(UserWarning, match="damaged"):
        job.check(10)


def test_a_training_that_lost_steps_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_curves", lambda *_: None)
    job = Training(tmp_path)
    assert train.main(arguments(job.folder, training_steps=2)) == 0
    assert job.check(2) == []
    assert job.check(3) == ["the checkpoint is of step 2, 3 was announced"]
    metrics = job.folder / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.read_text().splitlines(keepends=True) if '"step": 1,' not in line))
    assert job.check(2) == ["metrics.jsonl lacks the steps [1], the checkpoint is of step 2"]


def test_what_a_file_holds_is_told_apart_and_its_order_is_not(tmp_path):
    from safetensors.numpy import save_file

    a, b = np.ones(3, np.float32), np.zeros(2, np.float32)
    for name, tensors in {"first": {"a": a, "b": b}, "again": {"b": b, "a": a}, "other": {"a": a, "b": b + 1e-7}}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    first, again, other = (contents(tmp_path / f"{name}.safetensors") for name in ("first", "again", "other"))
    assert first == again != other


def test_a_committed_write_that_was_interrupted_is_a_result(tmp_path):
    job = Conversion(tmp_path)
    (job.folder / ".complete").mkdir(parents=True)
    (job.folder / "a.json").write_text("old")
    (job.folder / ".complete" / "a.json").write_text("new")
    (tmp_path / "a.json").write_text("new")
    assert job.results() == {"a.json": contents(tmp_path / "a.json")}


def test_half_written_files_are_noticed(tmp_path):
    assert leftovers(tmp_path) == []
    (tmp_path / ".a.123.new.json").touch()
    (tmp_path / ".incoming").mkdir()
    assert leftovers(tmp_path) == ["left behind: .a.123.new.json, .incoming"]


def test_a_slope_is_found_beside_the_level_of_each_process():
    random = np.random.default_rng(0)
    steps = np.concatenate([np.linspace(0, 0.5, 50), np.linspace(0.5, 1, 50)])
    levels = np.repeat(np.eye(2), 50, axis=0)
    values = 3 * steps + levels @ [5, 9] + random.normal(0, 0.1, 100)
    slope, error = _slope(steps, values, levels)
    assert abs(slope - 3) < 3 * error < 0.5


def test_a_training_that_is_saved_elsewhere_has_lost_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_curves", lambda *_: None)
    job = Training(tmp_path)
    assert train.main(arguments(job.folder, training_steps=2)) == 0
    assert train.main(arguments(job.elsewhere / "run-step3", training_steps=3)) == 0
    assert job.check(3) == []
    assert job.check(4) == ["the checkpoint is of step 3, 4 was announced"]
