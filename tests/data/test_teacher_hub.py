"""Hub ids: downloaded once from a hub on this machine, then taken from the cache; without network an error that helps."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from data.encoders import random_model, save
from hub import COMMIT, Hub, running_hub

from energy_flow_mlx.data.sentence_folder import OPTIONAL

MODULES = json.dumps(
    [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "1_Pooling"))]
)


TEACHER = "some/teacher"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as server:
        folder = save(random_model("distilbert"), tmp_path / "repository")
        server.repositories[TEACHER] = {path.name: path.read_bytes() for path in folder.iterdir()}
        yield server


def files_asked(hub: Hub) -> list[str]:
    return [path for path in hub.asked if path.startswith(f"/{TEACHER}/")]


def run(code: str, endpoint: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because huggingface_hub reads its environment when it is imported."""
    names = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", f"from energy_flow_mlx.data import *\n{code}"],
        env={**{key: value for key, value in os.environ.items() if not key.startswith("HF_")}, **names},
        capture_output=True, text=True,
    )  # fmt: skip


OPEN = "t = open_teacher('some/teacher', max_length=20); print(t.name, t.fingerprint, t.embed(['a dog']).sum())"


def test_download_then_cache(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = run(OPEN, hub.endpoint, cache)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("some/teacher (distilbert, mean, unit length, float32, 20 tokens) ")
    asked = files_asked(hub)
    names = {"config.json", "model.safetensors", "tokenizer.json", *OPTIONAL}
    assert {path.rpartition("/")[2] for path in asked} == names
    again = run(OPEN, hub.endpoint, cache)
    assert again.stdout == first.stdout and files_asked(hub) == asked, "the second run asked the network"
    offline = run(OPEN, "http://127.0.0.1:9", cache, HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout, offline.stderr
    tokens = run("print(open_tokeniser('some/teacher').vocab_size)", "http://127.0.0.1:9", cache)
    assert tokens.stdout.strip() == "150", tokens.stderr


def test_without_network(tmp_path: Path) -> None:
    """The error comes at once: the client neither waits nor tries again."""
    cache = tmp_path / "cache"
    for offline in ({"HF_HUB_OFFLINE": "1"}, {}):
        code = (
            "import time; time.sleep = lambda seconds: print('waits')\n"
            "try: open_teacher('distilbert-base-uncased')\nexcept FileNotFoundError as error: print(error)"
        )
        done = run(code, "http://127.0.0.1:9", cache, **offline)
        words = done.stdout
        assert words.startswith("teacher='distilbert-base-uncased': no such folder, not in the cache"), done.stderr
        assert str(cache) in words and "etrying" not in done.stderr
        assert "hf download distilbert-base-uncased --include '*.json' '*.safetensors' --local-dir FOLDER" in words
        assert "then pass FOLDER as teacher" in words


def test_modules_of_sentence_transformers(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hub.repositories[TEACHER] |= {"1_Pooling/config.json": b'{"pooling_mode": "max"}', "modules.json": MODULES.encode()}
    done = run("print(open_teacher('some/teacher').name)", hub.endpoint, cache)
    assert done.stdout.strip() == "some/teacher (distilbert, max, unit length, float32, 40 tokens)", done.stderr
    offline = run("print(open_teacher('some/teacher').name)", "http://127.0.0.1:9", cache)
    assert offline.stdout == done.stdout and "Warning" not in offline.stderr, offline.stderr


def test_a_cache_that_holds_a_part(hub: Hub, tmp_path: Path) -> None:
    """Where the cache does not tell whether there is a modules.json, that is said; where a module is missing, it is refused."""
    cache = tmp_path / "cache"
    snapshot = cache / "models--some--teacher" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (snapshot / name).write_bytes(hub.repositories[TEACHER][name])
    said = run(OPEN, "http://127.0.0.1:9", cache)
    assert said.stdout.startswith("some/teacher (distilbert, mean, "), said.stderr
    assert "does not tell whether the repository has modules.json, sentence_bert_config.json" in said.stderr
    (snapshot / "modules.json").write_text(MODULES)
    code = "try: open_teacher('some/teacher')\nexcept FileNotFoundError as error: print(error)"
    refused = run(code, "http://127.0.0.1:9", cache)
    assert "or take 1_Pooling/config.json from" in refused.stdout, refused.stderr


def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    code = "try: open_teacher({!r})\nexcept {} as error: print(error)"
    unknown = run(code.format("nobody/nothing", "FileNotFoundError"), hub.endpoint, tmp_path / "cache")
    assert "teacher='nobody/nothing': no such folder" in unknown.stdout, unknown.stderr
    hub.repositories["short"] = {name: data for name, data in hub.repositories[TEACHER].items() if name != "model.safetensors"}
    lacking = run(code.format("short", "ValueError"), hub.endpoint, tmp_path / "cache")
    assert "the repository lacks one of config.json, model.safetensors" in lacking.stdout, lacking.stderr
    for spec in ("../up", "/no/such", "a/b/c", "", "~nobody/x"):
        odd = run(code.format(spec, "FileNotFoundError"), hub.endpoint, tmp_path / "cache")
        assert "no such folder, and no hub id" in odd.stdout, (spec, odd.stderr)
