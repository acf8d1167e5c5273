"""Training as a call: callbacks, threads, stopping and going on, and what comes back."""

import threading

import numpy as np
import pytest
from train.small import FIELDS

from energy_flow_mlx import ConfigError, EnergyConfig
from energy_flow_mlx.train import Callback, Trainer, progress

CONFIG = EnergyConfig(**{**FIELDS, "training_steps": 4})


class Heard(Callback):
    """Notes what it hears; calls `then` after each step."""

    def __init__(self, then=lambda: None):
        self.events, self.then = [], then

    def on_step(self, step, values):
        self.events.append(("step", step))
        self.then()

    def on_validation(self, step, result):
        self.events.append(("validation", step, result.cosine))

    def on_checkpoint(self, step, folder):
        self.events.append(("checkpoint", step))

    def on_end(self, run):
        self.events.append(("end", run.folder))


def test_callbacks_hear_a_run_in_a_thread(tmp_path):
    heard, runs = Heard(), []
    trainer = Trainer(CONFIG, callbacks=[heard], out=tmp_path / "run", quiet=True)
    thread = threading.Thread(target=lambda: runs.append(trainer.fit()))
    thread.start()
    thread.join()
    (run,) = runs
    assert trainer.exit_code == 0
    assert [event[:2] for event in heard.events] == [
        ("step", 1), ("step", 2), ("validation", 2), ("checkpoint", 2),
        ("step", 3), ("step", 4), ("validation", 4), ("checkpoint", 4), ("end", tmp_path / "run"),
    ]  # fmt: skip
    cosines = run.metrics["validation_cosine"]
    np.testing.assert_allclose(cosines[~np.isnan(cosines)], [event[2] for event in heard.events if event[0] == "validation"])
    assert run.config.training_steps == 4
    assert run.model.trained_steps == 4


def test_a_stopped_run_is_saved_and_goes_on(tmp_path):
    heard = Heard(then=lambda: trainer.stop())
    trainer = Trainer(CONFIG, callbacks=[heard], out=tmp_path / "run", quiet=True)
    assert trainer.fit().model.trained_steps < 4
    assert trainer.exit_code == 130
    heard.then = lambda: None
    assert trainer.fit().model.trained_steps == 4
    assert trainer.exit_code == 0


def test_refused(tmp_path):
    out = tmp_path / "run"
    Trainer(CONFIG.replace(training_steps=1), out=out, quiet=True).fit()
    with pytest.raises(ConfigError, match="learning_rate"):
        Trainer(CONFIG.replace(learning_rate=0.5), out=out, resume=True)
    with pytest.raises(ConfigError, match="without out"):
        Trainer(CONFIG, resume=True)
    with pytest.raises(FileExistsError, match="not empty"):
        Trainer(CONFIG, out=out)


def test_a_notebook_has_its_own_bar(tmp_path, monkeypatch):
    made = []

    class NotebookBar:
        def __init__(self, **options):
            made.append(options)

        def __getattr__(self, name):
            return lambda *arguments, **options: made.append(name)

    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(progress, "tqdm", NotebookBar)
    Trainer(CONFIG, out=tmp_path / "run").fit()
    assert made[0] == {"total": 4, "initial": 0, "disable": False}
    assert made.count("update") == 4
    assert made[-1] == "close"
