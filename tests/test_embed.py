"""python -m energy_flow_mlx.embed: a line a text, in batches, from a file or standard input."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models.small import SMALL, lively_model

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.data import HashedNgramTeacher, Tokeniser
from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.embed import main, write_npy

TEXTS = ["a dog runs", "", "Zwölf Boxkämpfer", "prices fell", "a dog runs"]
TEACHER = HashedNgramTeacher(SMALL.embedding_dim)


@pytest.fixture
def model() -> EnergyFlow:
    model = lively_model(text_max_positions=128)
    model.text_encoder.tokeniser = Tokeniser.whitespace(TEXTS[:1], 20)
    return model


@pytest.fixture
def run(model: EnergyFlow, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "run")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8-sig")
    return tmp_path / "run"


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize("ending", ["npy", "jsonl"])
def test_rows_are_those_of_embed(ending: str, batch_size: int, run: Path, model: EnergyFlow, capsys: pytest.CaptureFixture[str]) -> None:
    to = run.parent / f"out.{ending}"
    assert main([str(run), str(run.parent / "texts.txt"), "--to", str(to), "--batch-size", str(batch_size)]) == 0
    assert capsys.readouterr().out == f"{to}: 5 texts, 10 numbers each\n"
    if ending == "npy":
        rows = np.load(to)
        assert rows.dtype == np.float32
    else:
        lines = [json.loads(line) for line in to.read_text(encoding="utf-8").splitlines()]
        assert [line["text"] for line in lines] == TEXTS
        rows = np.array([line["embedding"] for line in lines])
    assert np.allclose(rows, model.embed(TEXTS, TEACHER), atol=1e-6)
    assert sorted(path.name for path in run.parent.iterdir()) == sorted([to.name, "run", "texts.txt"])


@pytest.mark.parametrize("text", ["one\ntwo", ""])
def test_standard_input(text: str, run: Path, model: EnergyFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main([str(run), "-", "--to", str(run.parent / "out.npy"), "--text-encoder"]) == 0
    assert np.allclose(np.load(run.parent / "out.npy"), model.embed(text.split()), atol=1e-6)


def test_a_batch_is_written_before_the_next_is_read(tmp_path: Path) -> None:
    path, sizes = tmp_path / "out.npy", []

    def batches():  # type: ignore[no-untyped-def]
        for row in range(40):
            sizes.append(path.stat().st_size)
            yield [""] * 100, np.full((100, 768), row, np.float32)

    write_npy(path, batches(), 768)
    assert sizes[-1] > 30 * 100 * 768 * 4
    assert np.array_equal(np.load(path)[:, 0], np.repeat(np.arange(40), 100))


BUILT_IN: Callable[[Path], object] = lambda run: None  # noqa: E731


def converted(run: Path) -> None:
    (run / "conversion.json").write_text("{}")


def other_data(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": str(run.parent / "texts.txt")}))


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        (BUILT_IN, ["--to", "out.csv"], "--to out.csv: accepted are files that end in .npy or .jsonl"),
        (BUILT_IN, ["--to", "texts.npy"], "texts.npy exists: name another file, or give --overwrite"),
        (BUILT_IN, ["--to", "out.npy", "--batch-size", "0"], "--batch-size must be an integer from 1 to 2147483647, got 0"),
        (BUILT_IN, ["--to", "out.npy", "--batch-size", "99999999999"], "--batch-size must be an integer from 1 to 2147483647, got 99999999999"),
        (converted, ["--to", "out.npy"], "run: nothing tells the teacher of its embeddings; --teacher names a folder, hub id or builtin"),
        (other_data, ["--to", "out.npy"], "run: nothing tells the teacher of its embeddings; --teacher names a folder, hub id or builtin"),
    ],
)
def test_refusals(
    prepare: Callable[[Path], object], words: list[str], message: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    Path("texts.npy").write_text("old")
    prepare(run)
    assert main(["run", "texts.txt", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not Path("out.npy").exists()
    assert Path("texts.npy").read_text() == "old"


def test_texts_alone_are_not_enough_where_the_input_is_added(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "input_residual": True}))
    assert main([str(run), str(run.parent / "texts.txt"), "--to", str(run.parent / "out.npy"), "--text-encoder"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --text-encoder is not accepted with {run}, which adds its input's embedding")


def test_a_broken_line_leaves_no_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "texts.txt").write_bytes(b"fine\n\xff\n")
    assert main([str(run), str(run.parent / "texts.txt"), "--to", str(run.parent / "out.npy"), "--batch-size", "1"]) == 2
    assert "texts.txt: line 2: is not UTF-8" in capsys.readouterr().err
    assert sorted(path.name for path in run.parent.iterdir()) == ["run", "texts.txt"]


def test_the_teacher_is_that_of_the_data_set(run: Path, model: EnergyFlow, capsys: pytest.CaptureFixture[str]) -> None:
    data = run.parent / "data"
    build(Settings(sources=("builtin:30",), dim=SMALL.embedding_dim, validation=3, test=3), data, quiet=True)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "data": str(data)}))
    words = [str(run), str(run.parent / "texts.txt"), "--to", str(run.parent / "out.npy"), "--overwrite"]
    assert main(words) == 0
    assert np.allclose(np.load(run.parent / "out.npy"), model.embed(TEXTS, TEACHER), atol=1e-6)
    about = json.loads((data / "dataset.json").read_text())
    about["teacher"]["fingerprint"] = "another"
    (data / "dataset.json").write_text(json.dumps(about))
    assert main(words) == 2
    assert "its data have the teacher hashed-ngram-10-seed0; --teacher names its folder, hub id or builtin" in capsys.readouterr().err
