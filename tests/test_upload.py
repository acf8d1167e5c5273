"""Models on the hub: uploaded with a card, and loaded back, from a hub on this machine."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hub import Hub, running_hub
from models.small import SMALL, lively_model

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.cli import Parser, add_config_flags, given_fields, layered_config
from energy_flow_mlx.data import HashedNgramTeacher, Tokeniser
from energy_flow_mlx.upload import card, main

TEXTS = ["a dog runs", "prices fell"]
TEACHER = HashedNgramTeacher(SMALL.embedding_dim)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as server:
        yield server


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = lively_model(text_max_positions=128, text_vocab_size=400, test_pairs=20, validation_pairs=20, train_pairs=60)
    model.text_encoder.tokeniser = Tokeniser.train(["a dog runs, prices fell"], 60)
    model.trained_steps = 12
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "curves.png").write_bytes(b"a picture")
    (tmp_path / "run" / "optimizer.safetensors").write_bytes(b"not for the hub")
    return tmp_path / "run"


def execute(code: str, hub: Hub, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because huggingface_hub reads its environment when it is imported."""
    names = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache), "HF_TOKEN": "a token", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *words], env={**os.environ, **names}, cwd=cache.parent, capture_output=True, text=True, check=False
    )


UPLOAD = "import sys; from energy_flow_mlx.upload import main; sys.exit(main(sys.argv[1:]))"
LOAD = """
import sys, numpy as np
from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.data import HashedNgramTeacher
model = EnergyFlow.from_pretrained(sys.argv[1])
np.save(sys.argv[2], model.embed(["a dog runs", "prices fell"], HashedNgramTeacher(10)))
print(model.text_encoder.tokeniser is not None)
"""


def test_a_run_is_uploaded_with_its_card_and_loaded_back(hub: Hub, run: Path) -> None:
    cache, model = run.parent / "cache", EnergyFlow.from_pretrained(run)
    done = execute(UPLOAD, hub, cache, "run", "me/small", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{hub.endpoint}/me/small/commit/")
    assert [(made["name"], made["organization"], made["visibility"]) for made in hub.made] == [("small", "me", "private")]
    files = hub.repositories["me/small"]
    assert sorted(files) == ["README.md", "config.json", "curves.png", "model.safetensors", "tokenizer.json"]
    assert all(data == (run / name).read_bytes() for name, data in files.items() if name != "README.md")
    text = files["README.md"].decode()
    assert "20 held-out test pairs of builtin" in text
    assert "energy flow (12 steps)" in text
    assert SMALL.command().split(" --lattice-depth")[0] in text
    assert "](curves.png)" in text

    for turn in range(2):  # the second time without a request: from the cache
        hub.asked.clear()
        done = execute(LOAD, hub, cache, "me/small", f"rows{turn}.npy")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "True\n"
        assert any(path.startswith("/me/small/") for path in hub.asked) == (turn == 0)
        assert np.allclose(np.load(run.parent / f"rows{turn}.npy"), model.embed(TEXTS, TEACHER), atol=1e-6)


def test_save_pretrained_pushes_and_a_model_without_a_tokeniser_is_loaded(hub: Hub, run: Path) -> None:
    (run / "tokenizer.json").unlink()
    push = "from energy_flow_mlx import EnergyFlow; EnergyFlow.from_pretrained('run').save_pretrained('new', push_to_hub='me/small')"
    done = execute(push + LOAD, hub, run.parent / "cache", "me/small", "rows.npy")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert sorted(hub.repositories["me/small"]) == ["config.json", "model.safetensors"]


def test_a_refused_upload_says_how_to_log_in(hub: Hub, run: Path) -> None:
    hub.refuses = 403
    done = execute(UPLOAD, hub, run.parent / "cache", "run", "me/small", "--without-table")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: me/small: the upload to {hub.endpoint} failed (")
    assert "hf auth login" in done.stderr
    assert hub.repositories == {}


def test_a_missing_repository_is_named(hub: Hub, run: Path) -> None:
    done = execute(LOAD, hub, run.parent / "cache", "me/nothing", "rows.npy")
    assert "FileNotFoundError: folder='me/nothing'" in done.stderr
    assert "RepositoryNotFoundError" in done.stderr


def test_a_missing_folder_beside_others_is_no_hub_id(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "runs").mkdir()
    monkeypatch.chdir(run.parent)
    with pytest.raises(FileNotFoundError, match=r"^runs/tiny/config.json is missing: a model folder holds"):
        EnergyFlow.from_pretrained("runs/tiny")


@pytest.mark.parametrize("name", ["small", "me/small/more", "me small/x", ""])
def test_other_names_than_owner_and_name_are_refused(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), name]) == 2
    assert capsys.readouterr().err == f"error: repository={name!r} is not accepted: a repository of the hub is OWNER/NAME\n"
    with pytest.raises(ValueError, match="push_to_hub="):
        EnergyFlow.from_pretrained(run).save_pretrained(run.parent / "new", push_to_hub=name)
    assert not (run.parent / "new").exists()


@pytest.mark.parametrize(
    "config",
    [
        EnergyConfig.tiny(),
        EnergyConfig.debug().replace(seed=3, data="my data/set", movement_based_spawn=True, pairs="copy", input_residual=False),
        EnergyConfig.preset("reference-experiment"),
        SMALL,
    ],
)
def test_the_cards_command_trains_this_configuration(config: EnergyConfig) -> None:
    program, flags = config.command().split("energy_flow_mlx.train ")
    assert program == "python -m "
    words = shlex.split(flags)
    parser = Parser()
    add_config_flags(parser, words)
    given = parser.parse_args(words)
    assert layered_config(given.preset, None, given_fields(given)) == config


def test_the_card_holds_the_configuration_and_says_what_a_converted_model_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = EnergyFlow.from_pretrained(run)
    config = EnergyConfig.from_json(run / "config.json")
    text = card("me/small", model, config, None, plot=False, converted=False)
    assert json.loads(text.split("```json\n")[1].split("```")[0]) == config.to_dict()
    assert "Not measured." in text
    assert "curves.png" not in text
    assert "it predicts the embedding of the text that belongs to it." in text
    copying = card("me/small", model, config.replace(pairs="copy"), None, plot=False, converted=False)
    assert "it predicts that embedding itself, carried through the lattice." in copying
    (run / "conversion.json").write_text("{}")
    assert main([str(run), "me/small", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "converted from PyTorch" in shown
    assert "energy_flow_mlx.train" not in shown
