"""pairs=copy: every input is its own target, in built-in data, dataset folders and files, and in runs on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from train.small import arguments, small_config

from energy_flow_mlx import evaluate
from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.dataset.folder import read_folder
from energy_flow_mlx.dataset.formats import write_file
from energy_flow_mlx.dataset.open import data_of_run
from energy_flow_mlx.train import command as train

COPY = {"pairs": "copy", "input_residual": False}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGY_FLOW_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """A dataset folder, and beside it a file of the same pairs."""
    path = tmp_path_factory.mktemp("data") / "set"
    build(Settings(sources=("builtin:60",), dim=12, validation=10, test=12), path, quiet=True)
    write_file(path.with_suffix(".jsonl"), read_folder(path))
    return path


@pytest.mark.parametrize("kind", ["builtin", "folder", "file"])
def test_inputs_are_their_own_targets_and_the_split_stays(kind, stored):
    spec = {"builtin": "builtin", "folder": str(stored), "file": str(stored.with_suffix(".jsonl"))}[kind]
    related, copied = (data_of_run(small_config(data=spec, **changes)) for changes in ({}, COPY))
    for there, here in zip(related[:3], copied[:3], strict=True):
        assert len(here) == len(there) > 0 and here.dim == there.dim
        indices = np.array([len(there) - 1, 0, 0])
        before, batch = there.batch(indices), here.batch(indices)
        assert not np.array_equal(before.target_embedding, before.input_embedding)
        np.testing.assert_array_equal(batch.target_embedding, before.input_embedding)
        for name in ("input_embedding", "input_ids", "attention_mask", "indices"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(before, name))
        for index in range(len(there)):
            assert here.texts(index) == (there.texts(index).input,) * 2
    assert copied.tokeniser.fingerprint == related.tokeniser.fingerprint
    assert copied.name == f"{related.name}, copied" and copied.fingerprint != related.fingerprint


def test_a_run_is_resumed_and_judged_on_its_copies_alone(tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(arguments(run, training_steps=1, **COPY)) == 0
    assert train.main(["--resume", str(run), "--training-steps", "2", "--quiet"]) == 0
    table = capsys.readouterr().out.splitlines()[-6:]
    assert table[0] == "8 held-out test pairs of builtin (seed 0, teacher hashed-ngram-12-seed0), copied"
    assert [row.split()[2:4] for row in table if row.startswith("input itself")] == [["1.0000", "100.0%"]]
    assert evaluate.main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == table

    assert train.main(["--resume", str(run), "--pairs", "related"]) == 2
    assert "--pairs cannot be changed" in capsys.readouterr().err
    (run / "config.json").write_text(json.dumps({**json.loads((run / "config.json").read_text()), "pairs": "related"}))
    assert train.main(["--resume", str(run), "--training-steps", "3"]) == 2
    assert "was trained on the data builtin (seed 0, teacher hashed-ngram-12-seed0), copied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--pairs", "copies"], "pairs='copies' is not accepted: it takes one of related, copy"),
        (["--pairs", "copy"], "pairs=copy is not accepted with input_residual"),
    ],
)
def test_what_is_refused(flags, named, tmp_path, capsys):
    assert train.main([*flags, "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {named}") and not (tmp_path / "run").exists()
