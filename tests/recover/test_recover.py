"""What a run brings back as text: which sentences are asked for, the rows of the table, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from benchmarks import text_recovery
from models.small import SMALL, lively_model
from test_generate import small_run, with_corrector

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.data import ArrayPairs, HashedNgramTeacher, PairData, TextPair, Tokeniser
from energy_flow_mlx.dataset.build import Settings, build
from energy_flow_mlx.dataset.open import data_of_run
from energy_flow_mlx.models.through_model import ThroughModel
from energy_flow_mlx.recover import sentences
from energy_flow_mlx.recover.__main__ import main
from energy_flow_mlx.recover.recovery import recover
from energy_flow_mlx.recover.sentences import held_out, nearest_targets
from energy_flow_mlx.text.scores import NO_BLEU, scores_by_length
from energy_flow_mlx.text.search import Search

TEACHER = HashedNgramTeacher(10)
SIZES = {"train_pairs": 60, "validation_pairs": 2, "test_pairs": 30}
SHORT = ["--max-length", "5", "--num-beams", "2"]


def data_of(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> PairData:
    tokeniser = Tokeniser.whitespace(["a dog"], 20)
    parts = [ArrayPairs.embed([TextPair(*pair) for pair in pairs], TEACHER, tokeniser, 6) for pairs in (train, test, test)]
    return PairData(*parts, tokeniser, "made up")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("run"), **SIZES)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.splitlines()[-1].startswith("error: ")
    return captured.err


def test_no_sentence_that_was_learned_is_asked_for() -> None:
    train = [("a cat sits", "An\u00a0Animal sits."), ("Prices fell", "it rained"), ("it rained", "")]
    test = [("x", "an animal  sits."), ("x", "prices\u200b fell"), ("x", "a dog runs"), ("X ", "a dog RUNS"), ("y", "a dog runs"), ("z", "\u200b"),
            ("x", "a man reads")]  # fmt: skip
    numbers, left_out = held_out(data_of(train, test), 100, seed=0)
    assert numbers.tolist() == [2, 4, 6]
    assert left_out == {"without a text": 1, "repeated": 1, "in training texts": 2, "beyond the number asked for": 0}
    fewer = [held_out(data_of(train, test), 1, seed) for seed in range(8)]
    assert {int(number) for found in fewer for number in found.numbers} == {2, 4, 6}
    assert all(found.left_out["beyond the number asked for"] == 2 for found in fewer)


@pytest.mark.parametrize("most", [1, 7, 10**6])
def test_the_nearest_training_sentence(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "_COSINES", most)
    random = np.random.default_rng(0)
    pairs = [TextPair("in", "" if number % 3 == 0 else f"target {number}") for number in range(20)]
    targets, predicted = (random.normal(size=(count, 10)).astype(np.float32) for count in (20, 3))
    predicted[2] = targets[3]  # which has no text
    train = ArrayPairs(pairs, targets, targets, Tokeniser.whitespace(["in"], 20).encode(["in"] * 20, 6))
    cosines = predicted @ targets.T / np.linalg.norm(targets, axis=1)
    cosines[:, ::3] = -2
    assert nearest_targets(5 * predicted, train) == [f"target {at}" for at in cosines.argmax(axis=1)]


def test_every_row_is_what_its_way_gives(run: Path) -> None:
    model, search = EnergyFlow.from_pretrained(run), Search(num_beams=2, max_length=6, min_length=4)
    config = EnergyConfig.from_json(run / "config.json").replace(text_max_length=8, text_max_positions=8)
    data = data_of_run(config, model.text_encoder.tokeniser)
    numbers, left_out = held_out(data, 7, seed=0)
    wanted = [data.test.texts(int(number)).target for number in numbers]
    batch = data.test.batch(numbers)
    out = model(batch.input_embedding)
    came = {
        "through the lattice": model.decode(out.surface, search=search),
        "from the teacher's embedding": model.decode(embedding=mx.array(batch.target_embedding), search=search),
        "nearest training sentence": nearest_targets(np.array(out.embedding), data.train),
    }
    assert len({tuple(texts) for texts in came.values()}) == 3
    found = recover(model, data, TEACHER, search, config, most=7, batch_size=3)
    assert (found.data, found.sentences, found.left_out) == (data.name, 7, left_out)
    tokens = data.tokeniser.encode(wanted, 30).attention_mask.sum(axis=1)
    assert found.too_long == (tokens > 8).sum() and 0 < found.too_long < 7
    assert list(found.scores) == list(came)
    for name, texts in came.items():
        cosines = np.sum(TEACHER.embed(wanted) * TEACHER.embed(texts), axis=1)
        expected = scores_by_length(wanted, texts, (cosines * list(map(bool, texts))).tolist())  # of no text there is no embedding
        assert list(found.scores[name]) == list(expected)
        for length, scores in expected.items():
            assert vars(found.scores[name][length]) == pytest.approx(vars(scores), abs=1e-6)


def test_a_decoder_that_knows_its_text_is_perfect_and_an_empty_answer_is_worth_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of([("a cat sits", "an animal sits")], [("a dog runs.", "an animal runs."), ("two men read", "people read")])
    texts = [data.test.texts(number).target for number in range(2)]

    def decode(self: EnergyFlow, surface: mx.array, *, search: Search) -> list[str]:
        known = [np.array(self.map_to_surface(TEACHER.embed([text]))).ravel() for text in texts]
        rows = np.array(surface).reshape(len(surface), -1)
        return [next((text for text, mapped in zip(texts, known, strict=True) if np.allclose(row, mapped, atol=1e-5)), "\u200b") for row in rows]

    monkeypatch.setattr(EnergyFlow, "decode", decode)
    scores = recover(lively_model(), data, TEACHER, Search(), SMALL, most=9, batch_size=9).scores
    best, worst = scores["from the teacher's embedding"]["all"], scores["through the lattice"]["all"]
    assert (best.texts, best.exact, best.token_f1, best.cosine) == (2, 1, 1, pytest.approx(1, abs=1e-6))
    assert (worst.exact, worst.token_f1, worst.cosine) == (0, 0, 0)
    nearest = scores["nearest training sentence"]["all"]
    assert nearest.exact == 0 and nearest.token_f1 == pytest.approx((2 * 2 / 7 + 0) / 2)


def test_the_benchmark_trains_stage_upon_stage_goes_on_with_what_is_there_and_stops_where_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def train(arguments: list[str]) -> int:
        calls.append(arguments)
        return (0, 3, 0, 0, 4)[len(calls) - 1]

    monkeypatch.setattr(text_recovery.command, "main", train)
    monkeypatch.setattr(sys, "argv", ["text_recovery.py", "--to", str(tmp_path), "--seed", "2", "--teacher", "builtin"])
    flows, decoder, corrector = (tmp_path / f"seed2-{name}" for name in ("flows", "decoder", "corrector"))
    assert text_recovery.main() == 3 and len(calls) == 2
    flows.mkdir()
    (flows / "trainer.json").touch()
    assert text_recovery.main() == 4 and calls[2] == ["--resume", str(flows)] and calls[3] == calls[1]
    assert calls[0][-1] == "--no-input-residual"
    first, second, third = (dict(zip(call[::2], call[1::2], strict=False)) for call in (calls[0], calls[1], calls[4]))
    assert (first["--out"], first["--pairs"], first["--seed"]) == (str(flows), "copy", "2")
    assert (second["--out"], second["--init-from"], second["--part"]) == (str(decoder), str(flows), "decoder")
    assert (third["--out"], third["--init-from"], third["--part"]) == (str(corrector), str(decoder), "corrector")
    assert third["--text-corrector-teacher"] == "builtin" and "--text-corrector-teacher" not in first | second


@pytest.mark.parametrize("pairs", ["related", "copy"])
def test_with_rounds_each_way_has_a_corrected_row(
    pairs: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meant = []

    def correct(
        self: EnergyFlow | ThroughModel, texts: list[str], wanted: mx.array, teacher: HashedNgramTeacher, *, rounds: int, search: Search
    ) -> list[str]:
        meant.append((np.array(wanted), self, teacher, rounds))
        return ["an animal runs."] * len(texts)

    assert f"{run}: text_corrector: this model has none" in refusal(capsys, run, *SHORT, "--rounds", "2")
    for kind in (EnergyFlow, ThroughModel):
        monkeypatch.setattr(kind, "correct", correct)
    data = data_of([("a cat sits", "an animal sits")], [("a dog runs.", "an animal runs.")])
    model = EnergyFlow.from_pretrained(run)
    config = SMALL.replace(pairs=pairs)
    scores = recover(model, data, TEACHER, Search(num_beams=1, max_length=4), config, rounds=2, most=9, batch_size=9).scores
    assert list(scores) == ["through the lattice", "through the lattice, corrected", "from the teacher's embedding",
                            "from the teacher's embedding, corrected", "nearest training sentence"]  # fmt: skip
    assert [rows["all"].exact for rows in scores.values()] == [0, 1, 0, 1, 0]
    batch = data.test.batch(np.array([0]))
    expected = (model(batch.input_embedding).embedding, batch.target_embedding)
    for (wanted, _, *rest), embeddings in zip(meant, expected, strict=True):
        np.testing.assert_allclose(wanted, np.array(embeddings), atol=1e-6)
        assert rest == [TEACHER, 2]
    through, direct = (by for _, by, *_ in meant)
    assert direct is model
    if pairs == "copy":  # what came through the lattice is to be a text that comes back as this one did
        assert isinstance(through, ThroughModel) and through.batch_size == 9
        np.testing.assert_allclose(through.embed(["a dog"]), model.embed(["a dog"], TEACHER), atol=1e-6)
    else:
        assert through is model


def test_in_the_copy_task_correction_needs_a_teacher_too(run: Path) -> None:
    data = data_of([("a cat sits", "an animal sits")], [("a dog runs.", "an animal runs.")])
    model = EnergyFlow.from_pretrained(with_corrector(run, run.parent / "corrector"))
    with pytest.raises(ValueError, match="teacher: None came"):
        recover(model, data, None, Search(num_beams=1, max_length=4), SMALL.replace(pairs="copy"), rounds=1, most=9, batch_size=9)


def test_the_command_prints_a_table_or_the_same_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sacrebleu", reason=NO_BLEU)
    assert main([str(run), *SHORT, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert captured.err == "" and found["sentences"] + sum(found["left_out"].values()) == 30
    assert main([str(run), *SHORT]) == 0
    title, long, head, *lines = capsys.readouterr().out.splitlines()
    assert long == f"{found['too_long']} of them have more tokens than the run reads of a text (text_max_length)"
    assert title.startswith(f"{found['sentences']} held-out sentences of builtin (seed 0, teacher hashed-ngram-10-seed0); left out: ")
    assert head.split() == ["words", "texts", "exact", "token", "F1", "BLEU", "cosine"]
    rows = [(way, length, score) for way, lengths in found["scores"].items() for length, score in lengths.items()]
    assert len(lines) == len(rows) > 6
    for line, (way, length, score) in zip(lines, rows, strict=True):
        assert (line.startswith(way) or line.startswith("  ")) and length in line
        cells = [f"{score['texts']}", f"{score['exact']:.1%}", f"{score['token_f1']:.3f}", f"{score['bleu']:.1f}", f"{score['cosine']:.4f}"]
        assert line.split()[-5:] == cells


def test_what_cannot_be_measured_is_left_out_with_a_note(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "conversion.json").write_text("{}")
    assert main([str(folder), *SHORT, "--sentences", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2].split() == ["words", "texts", "exact", "token", "F1"]
    first, second = captured.err.splitlines()
    assert first.startswith(f"note: no cosines: {folder}: ") and second == f"note: {NO_BLEU}"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sentences", "0"], "--sentences must be an integer from 1 to 2147483647, got 0"),
        (["--batch-size", "0"], "--batch-size must be an integer from 1 to 2147483647, got 0"),
        (["--num-beams", "11"], "num_beams must be at most half of the vocabulary of 20"),
        (["--max-length", "1"], "max_length must be an integer from 2"),
        (["--teacher", "no/such/folder"], "no/such/folder"),
    ],
)
def test_what_is_refused(arguments: list[str], named: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in refusal(capsys, run, *arguments)


def test_a_run_that_has_nothing_to_bring_back_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def changed(name: str, **fields: object) -> Path:
        folder = Path(shutil.copytree(run, tmp_path / name))
        (folder / "config.json").write_text(json.dumps({**json.loads((run / "config.json").read_text()), **fields}))
        return folder

    source, data = tmp_path / "pairs.jsonl", tmp_path / "data"
    row = np.eye(10, dtype=np.float32)[0].tolist()
    source.write_text("".join(json.dumps({"input_embedding": [n, *row[1:]], "target_embedding": row}) + "\n" for n in range(1, 13)))
    build(Settings(sources=(str(source),), validation=2, test=2, dim=10), data, quiet=True)
    assert "its pairs have no texts to bring back" in refusal(capsys, changed("textless", data=str(data)), "--teacher", "builtin")

    source.write_text("".join(json.dumps({"input": f"a dog {n}", "target": "an animal"}) + "\n" for n in range(12)))
    build(Settings(sources=(str(source),), validation=2, test=2, dim=10), tmp_path / "same", quiet=True)
    told = refusal(capsys, changed("learned", data=str(tmp_path / "same")))
    assert "no sentence of its 2 test pairs is left: 2 in training texts" in told

    folder = changed("decoderless")
    for path in folder.glob("text_decoder*"):
        path.unlink()
    assert f"{folder}: text_decoder: this model has none" in refusal(capsys, folder)
