"""The command that sends texts through a model and back, and what it refuses."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from models.small import SMALL, lively_model

from energy_flow_mlx import CubeToTextDecoder, EnergyConfig, EnergyFlow
from energy_flow_mlx.data import HashedNgramTeacher, Tokeniser
from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.dataset.teacher import UnknownTeacher, teacher_of_run
from energy_flow_mlx.generate.__main__ import main
from energy_flow_mlx.generate.texts import MOST_CHARACTERS, given_texts, read_lines
from energy_flow_mlx.models.text_corrector import CorrectorSettings, TextCorrector
from energy_flow_mlx.models.text_decoder import Carried, DecoderSettings
from energy_flow_mlx.models.through_model import ThroughModel
from energy_flow_mlx.nn import T5Settings
from energy_flow_mlx.text.search import Search

WORDS = ["a dog runs", "the cat sleeps", "a man reads"]
SHORT = ["--max-length", "5"]


def small_run(folder: Path, **changes: object) -> Path:
    """A model folder with a text decoder and one tokeniser for both ends."""
    tokeniser = Tokeniser.whitespace(WORDS, 20)
    model = lively_model(**changes)
    mx.random.seed(1)
    t5 = {"vocab_size": 20, "d_model": 8, "num_decoder_layers": 1, "num_heads": 2, "d_kv": 3, "d_ff": 12, "relative_attention_num_buckets": 8,
          "relative_attention_max_distance": 16, "feed_forward_proj": "relu", "layer_norm_epsilon": 1e-6, "decoder_start_token_id": 0,
          "eos_token_id": 3, "surface_dim": 12, "adapter_dim": 6}  # fmt: skip
    sizes = T5Settings(vocab_size=20, dim=8, layers=1, heads=2, head_dim=3, feedforward_dim=12, buckets=8, max_distance=16)
    decoder = CubeToTextDecoder(DecoderSettings(surface_dim=12, adapter_dim=6, t5=sizes, end=3))
    decoder.tokeniser, decoder.carried = tokeniser, Carried(t5)
    model.text_encoder.tokeniser, model.text_decoder = tokeniser, decoder
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("run"))


def answers(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    assert main([*map(str, arguments), *SHORT, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments), *SHORT]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1].startswith("error: ") and "Traceback" not in captured.err
    return captured.err


def typed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_there_and_back(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answers(capsys, run, *WORDS, "--num-beams", 2)
    model, teacher = EnergyFlow.from_pretrained(run), HashedNgramTeacher(10)
    there = model.from_surface(model.text_encoder.encode(WORDS, SMALL.text_max_length))
    texts = model.decode(there.surface, search=Search(num_beams=2, max_length=5))
    assert [row["text"] for row in found] == WORDS and [row["generated"] for row in found] == texts and all(texts)
    meant, came = np.array(there.embedding), teacher.embed(texts)
    cosines = (meant * came).sum(axis=1) / np.linalg.norm(meant, axis=1) / np.linalg.norm(came, axis=1)
    assert np.allclose([row["cosine"] for row in found], cosines, atol=1e-5)
    assert not any(row["cut"] for row in found)


def test_a_residual_model_means_what_it_adds_to_its_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small_run(tmp_path, input_residual=True)
    (found,) = answers(capsys, folder, WORDS[0])
    model, teacher = EnergyFlow.from_pretrained(folder), HashedNgramTeacher(10)
    surface = model.text_encoder.encode(WORDS[:1], SMALL.text_max_length)
    meant = np.array(model.from_surface(surface, mx.array(teacher.embed(WORDS[:1]))).embedding)[0]
    came = teacher.embed([found["generated"]])[0]
    assert found["cosine"] == pytest.approx(meant @ came / np.linalg.norm(meant) / np.linalg.norm(came), abs=1e-5)


@pytest.mark.parametrize("batch", [2, 16])
def test_texts_come_from_arguments_a_file_or_standard_input(
    batch: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.txt"
    content = "\ufeff" + "\r\n".join(WORDS)  # a byte order mark, and no newline at the end
    path.write_bytes(content.encode())
    given = answers(capsys, run, *WORDS, "--batch-size", batch)
    assert answers(capsys, run, "--file", path, "--batch-size", batch) == given
    typed(monkeypatch, content.encode())
    assert answers(capsys, run, "--batch-size", batch) == given
    typed(monkeypatch, b"")
    assert answers(capsys, run) == []


def test_options_stand_anywhere(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *SHORT, WORDS[0], "--json", WORDS[1]]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == WORDS[:2]


def test_what_people_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = answers(capsys, run, WORDS[1])
    assert main([str(run), WORDS[1], *SHORT]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{WORDS[1]}\n  -> {row['generated']}   (cosine {row['cosine']:.3f})\n"
    assert captured.err == ""  # no bar where there is no terminal


def test_a_long_text_is_cut_with_a_note(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    exactly = "dog cat man a"  # with [CLS] and [SEP] the six tokens of text_max_length
    assert main([str(run), exactly, exactly + " the", *SHORT, "--json"]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["cut"] for line in captured.out.splitlines()] == [False, True]
    assert captured.err.startswith("note: 1 texts were cut: 6 tokens")
    typed(monkeypatch, b"dog " * 250_000 + b"\na dog")
    assert main([str(run), *SHORT, "--json"]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [(len(row["text"]), row["cut"]) for row in rows] == [(MOST_CHARACTERS, True), (5, False)]
    assert captured.err.startswith("note: 1 texts were cut")


def test_one_long_word_is_cut_too() -> None:
    (text,) = given_texts(["x" * 1_000_000])
    assert text.cut and text.text == "x" * MOST_CHARACTERS
    assert [(len(each.text), each.cut) for each in read_lines(io.StringIO("x" * MOST_CHARACTERS + "\ny"), "f")] == [(MOST_CHARACTERS, False), (1, False)]


@pytest.mark.parametrize("empty", ["", "  \t", "\u200b", "\x00\ufeff"])
def test_an_empty_text_is_refused(
    empty: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "text 2: " in refusal(capsys, run, "a dog", empty)
    path = tmp_path / "texts.txt"
    path.write_text(f"a dog\n{empty}\nthe cat\n", encoding="utf-8")
    assert f"{path}, line 2: " in refusal(capsys, run, "--file", path)
    typed(monkeypatch, f"a dog\n{empty}\n".encode())
    assert "standard input, line 2: " in refusal(capsys, run)


def test_bytes_that_are_no_text_are_refused(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, b"\xff\xfe dog\n")
    assert "standard input: not UTF-8 near line 1" in refusal(capsys, run)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["a dog", "--num-beams", "11"], "num_beams must be at most half of the vocabulary of 20"),
        (["a dog", "--num-beams", "0"], "num_beams must be an integer from 1"),
        (["a dog", "--length-penalty", "nan"], "length_penalty"),
        (["a dog", "--batch-size", "0"], "--batch-size must be an integer from 1 to 2147483647, got 0"),
        (["a dog", "--batch-size", str(2**64)], f"--batch-size must be an integer from 1 to 2147483647, got {2**64}"),
        (["a dog", "--teacher=-1"], "teacher='-1': no such folder, and no hub id"),
        (["a dog", "--teacher", "ä猫"], "teacher='ä猫': no such folder, and no hub id"),
        (["a dog", "--file", "x.txt"], "--file x.txt is not accepted together with texts"),
        (["--file", "x.txt"], "x.txt: no such file"),
        (["a dog", "--teacher", "no/such/folder"], "no/such/folder"),
    ],
)
def test_what_is_refused(arguments: list[str], named: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in refusal(capsys, run, *arguments)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("relative_attention_max_distance", 2**40, "relative_attention_max_distance must be an integer from 5 to 65536"),
        ("num_decoder_layers", 10**9, "num_decoder_layers is 1000000000, the file has 1"),
        ("d_model", 2**62, "d_model must be an integer from 1 to 2147483647"),
        ("prefix", 2**31 - 1, "text_decoder.json asks for an array that is larger than any can be"),
    ],
)
def test_a_decoder_of_sizes_that_its_file_has_not_is_refused_before_it_is_built(
    field: str, value: int, told: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    record = folder / "text_decoder.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), field: value}))
    said = refusal(capsys, folder, "a dog")
    assert "text_decoder" in said and told in said


def test_a_run_that_cannot_answer_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config.json is missing" in refusal(capsys, tmp_path / "nowhere", "a dog")
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "text_decoder_tokenizer.json").unlink()
    assert "text_decoder_tokenizer.json" in refusal(capsys, folder, "a dog")
    for name in ("text_decoder.json", "text_decoder.safetensors"):
        (folder / name).unlink()
    assert f"{folder}: this model has no text decoder" in refusal(capsys, folder, "a dog")
    shutil.copytree(run, folder, dirs_exist_ok=True)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(capsys, folder, "a dog")


def test_the_teacher_of_a_run(run: Path, tmp_path: Path) -> None:
    config = EnergyConfig.from_json(run / "config.json")
    built_in = HashedNgramTeacher(config.embedding_dim)
    assert teacher_of_run(run, config).fingerprint == built_in.fingerprint

    def data(teacher: dict | None) -> EnergyConfig:
        source, folder = tmp_path / "pairs.jsonl", tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        source.write_text("".join(json.dumps({"input": f"a dog {n}", "target": f"cat {n}"}) + "\n" for n in range(12)))
        build(Settings(sources=(str(source),), validation=2, test=2, dim=10), folder, quiet=True)
        about = json.loads((folder / "dataset.json").read_text())
        if teacher != {}:
            (folder / "dataset.json").write_text(json.dumps({**about, "teacher": teacher}))
        return config.replace(data=str(folder))

    assert teacher_of_run(run, data({})).fingerprint == built_in.fingerprint
    other = {"name": "someone", "fingerprint": "0"}
    with pytest.raises(UnknownTeacher, match="their teacher|the teacher someone"):
        teacher_of_run(run, data(other))
    with pytest.raises(ValueError, match="'builtin' is hashed-ngram-10-seed0, but the data .* teacher someone"):
        teacher_of_run(run, data(other), "builtin")
    for unknown in (data(None), config.replace(data=str(tmp_path / "gone"))):
        with pytest.raises(UnknownTeacher, match="--teacher"):
            teacher_of_run(run, unknown)
        assert teacher_of_run(run, unknown, "builtin").fingerprint == built_in.fingerprint
    converted = Path(shutil.copytree(run, tmp_path / "converted"))
    (converted / "conversion.json").write_text("{}")
    with pytest.raises(UnknownTeacher):
        teacher_of_run(converted, config)


def test_without_a_teacher_there_are_no_cosines(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "conversion.json").write_text("{}")
    assert main([str(folder), "a dog", *SHORT, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["cosine"] is None
    assert captured.err.startswith("note: no cosines: ") and "--teacher" in captured.err


def test_a_reader_who_leaves_ends_it(run: Path) -> None:
    command = [sys.executable, "-m", "energy_flow_mlx.generate", str(run), *SHORT, "--num-beams", "1", "--batch-size", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(b"a dog runs\n" * 50)  # and it is not closed: without the reader, the writer's end would not come
    process.stdin.flush()
    assert process.wait(60) == 0 and process.stderr.read() == b""
    process.stdin.close()
    process.stderr.close()


def with_corrector(run: Path, folder: Path, **fields: object) -> Path:
    """The run with a corrector of random weights, and other fields of its configuration."""
    model = EnergyFlow.from_pretrained(run)
    mx.random.seed(3)
    model.text_corrector = TextCorrector(
        CorrectorSettings(embedding_dim=10, max_length=6, adapter_dim=8, prefix=2, t5=model.text_decoder.settings.t5, start=2, end=3)
    )
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def test_correction_comes_nearer_to_what_was_meant(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a corrector of random weights, whose texts are kept only where the teacher finds them nearer."""
    assert "no text corrector, which --rounds 3 needs" in refusal(capsys, run, "a dog", "--rounds", 3)
    assert "--rounds must be an integer from 0 to 2147483647, got -1" in refusal(capsys, run, "a dog", "--rounds", -1)
    with_corrector(run, tmp_path / "run")
    before = answers(capsys, tmp_path / "run", *WORDS)
    after = answers(capsys, tmp_path / "run", *WORDS, "--rounds", 3, "--num-beams", 8)
    assert all(late["cosine"] >= early["cosine"] - 1e-6 for early, late in zip(before, after, strict=True))
    assert any(late["generated"] != early["generated"] for early, late in zip(before, after, strict=True))


@pytest.mark.parametrize("known", [True, False])
def test_in_the_copy_task_correction_looks_for_the_text_for_which_the_model_returns_the_same(
    known: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_corrector(run, tmp_path / "run", pairs="copy", input_residual=False, text_max_length=3)
    if not known:
        (folder / "conversion.json").write_text("{}")
    model, asked = EnergyFlow.from_pretrained(folder), []
    texts, correct = ["a dog runs", "two men"], ThroughModel.correct

    def watched(self: ThroughModel, given: list[str], wanted: mx.array, teacher: object, **settings: object) -> list[str]:
        asked.append((self.batch_size, teacher is not None, settings["rounds"]))
        # Candidates go in as the text itself did, cut to as many tokens.
        np.testing.assert_allclose(np.array(wanted), np.array(self.returned(texts)), atol=1e-5)
        assert np.abs(np.array(wanted[0]) - np.array(model.predict(texts)[0])).max() > 1e-3
        return correct(self, given, wanted, teacher, **settings)

    monkeypatch.setattr(ThroughModel, "correct", watched)
    assert main([str(folder), *texts, *SHORT, "--json"]) == 0 and not asked
    capsys.readouterr()
    assert main([str(folder), *texts, *SHORT, "--json", "--rounds", "3", "--num-beams", "8", "--batch-size", "5"]) == 0
    captured = capsys.readouterr()
    assert asked == [(5, known, 3)]
    assert ("and correction by what the model returns alone" in captured.err) != known


def test_by_what_the_model_returns_alone_correction_comes_nearer_to_that(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_corrector(run, tmp_path / "run", pairs="copy", input_residual=False)
    (folder / "conversion.json").write_text("{}")  # so that nothing tells the teacher
    model = EnergyFlow.from_pretrained(folder)
    before, after = (answers(capsys, folder, *WORDS, *more) for more in ((), ("--rounds", 3, "--num-beams", 8)))

    def nearness(found: list[dict]) -> np.ndarray:
        return np.sum(model.embed([row["generated"] for row in found]) * model.embed(WORDS), axis=1)

    assert np.all(nearness(after) >= nearness(before) - 1e-5)
    assert np.any(nearness(after) > nearness(before) + 1e-3)
    assert all(row["cosine"] is None for row in after)
