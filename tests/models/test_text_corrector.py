"""TextCorrector and the rounds of correction."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from models.small import lively_model

from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.data import HashedNgramTeacher, Tokeniser
from energy_flow_mlx.models.text_corrector import CorrectorSettings, TextCorrector, correct
from energy_flow_mlx.models.text_decoder import CubeToTextDecoder, DecoderSettings
from energy_flow_mlx.nn import T5Settings
from energy_flow_mlx.text.rows import NO_TOKEN
from energy_flow_mlx.text.search import Search

T5 = T5Settings(vocab_size=20, dim=8, layers=1, heads=2, head_dim=4, feedforward_dim=12)
SETTINGS = CorrectorSettings(embedding_dim=10, max_length=6, adapter_dim=7, prefix=2, t5=T5, start=2, end=3)


def corrector() -> TextCorrector:
    mx.random.seed(0)
    made = TextCorrector(SETTINGS)
    made.eval()
    return made


def inputs(batch: int = 3) -> tuple[mx.array, mx.array, mx.array]:
    random = np.random.default_rng(0)
    rows = random.integers(4, 20, (batch, 6)).astype(np.int32)
    rows[:, 4:] = NO_TOKEN
    return *(mx.array(random.standard_normal((batch, 10)).astype(np.float32)) for _ in range(2)), mx.array(rows)


def test_every_parameter_learns() -> None:
    made, (wanted, found, rows) = corrector(), inputs()
    ids = mx.array(np.random.default_rng(1).integers(0, 20, (3, 5)))

    def loss(parameters: dict) -> mx.array:
        made.update(parameters)
        return mx.sum(mx.sin(made(wanted, found, rows, ids)))

    gradients = dict(tree_flatten(mx.grad(loss)(made.parameters())))
    # A key's bias adds the same to all scores of a query.
    small = {name for name, gradient in gradients.items() if float(mx.abs(gradient).max()) < 1e-7}
    assert small == {name for name in gradients if name.endswith("key_proj.bias")}


def test_what_stands_after_the_end_of_a_text_changes_nothing() -> None:
    made, (wanted, found, rows) = corrector(), inputs()
    read = np.array(made.read(wanted, found, rows))
    made.decoder.token_embedding.weight[0] += 1.0  # what NO_TOKEN is looked up as
    assert read.shape == (3, 3 * 2 + 6, 8)
    np.testing.assert_allclose(np.array(made.read(wanted, found, rows))[:, :10], read[:, :10], atol=1e-6)


def test_candidates_are_as_many_as_beams_and_the_cache_changes_nothing() -> None:
    made, (wanted, found, rows) = corrector(), inputs()
    together = made.candidates(wanted, found, rows, Search(num_beams=4, max_length=6))
    assert [len(beams) for beams in together] == [4] * 3 and all(len(ids) <= 5 for beams in together for ids in beams)
    for at in range(3):
        assert made.candidates(*(each[at : at + 1] for each in (wanted, found, rows)), Search(num_beams=4, max_length=6)) == together[at : at + 1]


class Scripted:
    """A corrector that offers, for each text, what a script says, and notes how it was asked."""

    settings = SETTINGS

    def __init__(self, script: dict[str, list[str]], tokeniser: Tokeniser) -> None:
        self.script, self.tokeniser, self.asked = script, tokeniser, []

    def candidates(self, wanted: mx.array, found: mx.array, hypothesis: mx.array, settings: Search) -> list[list[list[int]]]:
        texts = [self.tokeniser.decode([id for id in row if id != NO_TOKEN]) for row in hypothesis.tolist()]
        self.asked.append(texts)
        return [[self.tokeniser.encode([offer], 6).input_ids[0].tolist() for offer in self.script[text]] for text in texts]


def test_a_round_keeps_the_nearest_and_ends_where_nothing_improves_or_could() -> None:
    words = "a b c d e f"
    tokeniser, teacher = Tokeniser.whitespace([words], 20), HashedNgramTeacher(64)
    script = {"a": ["f", "a b", "c"], "a b": ["a b c", "a"], "e": ["a"]}
    scripted, calls = Scripted(script, tokeniser), []

    def embed(texts: list[str]) -> np.ndarray:
        calls.append(list(texts))
        return teacher.embed(texts)

    def corrected(rounds: int) -> list[str]:
        scripted.asked.clear()
        wanted = teacher.embed(["a b c", "e f", "d"])
        return correct(scripted, tokeniser, embed, wanted, ["a", "e", "d"], Search(), rounds=rounds, neighbours=0)  # type: ignore[arg-type]

    assert corrected(0) == ["a", "e", "d"] and corrected(1) == ["a b", "e", "d"]
    assert calls[-1] == ["f", "a b", "c", "a"]  # the candidates of all texts at once
    assert corrected(20) == ["a b c", "e", "d"]
    assert scripted.asked == [["a", "e"], ["a b"]]  # neither a text that a round did not improve, nor one that is right
    assert correct(scripted, tokeniser, embed, np.zeros((0, 64), np.float32), [], Search(), rounds=3, neighbours=0) == []  # type: ignore[arg-type]


def test_where_no_beam_is_nearer_one_token_is_changed() -> None:
    """Likely are a, b and c everywhere; each text needs another kind of change, or several."""
    tokeniser, teacher = Tokeniser.whitespace(["a b c d e f"], 20), HashedNgramTeacher(64)
    logits = np.zeros((20,), np.float32)
    logits[[tokeniser.token_id(token) for token in "abc"]] = 5.0

    class Likely(Scripted):
        def __call__(self, wanted: mx.array, found: mx.array, hypothesis: mx.array, ids: mx.array) -> mx.array:
            return mx.broadcast_to(mx.array(logits), (*ids.shape, 20))

        neighbours = TextCorrector.neighbours

    texts, wanted = ["a d c", "a c", "a d b c", "d", "e"], ["a b c", "a b c", "a b c", "a b c", "e"]
    scripted = Likely(defaultdict(lambda: ["e"]), tokeniser)

    def corrected(rounds: int, neighbours: int) -> list[str]:
        return correct(  # type: ignore[arg-type]
            scripted, tokeniser, teacher.embed, teacher.embed(wanted), texts, Search(), rounds=rounds, neighbours=neighbours
        )

    assert corrected(5, 0) == texts
    assert corrected(1, 3)[:3] == ["a b c"] * 3  # in its stead, before it, left out
    assert corrected(8, 3) == [*["a b c"] * 4, "e"]


@pytest.fixture
def model() -> EnergyFlow:
    model = lively_model()
    model.text_decoder = CubeToTextDecoder(DecoderSettings(surface_dim=12, adapter_dim=6, t5=T5, start=2, end=3))
    model.text_decoder.tokeniser = model.text_encoder.tokeniser = Tokeniser.whitespace(["a b c d e f"], 20)
    model.text_corrector = corrector()
    model.eval()
    return model


def test_decode_with_rounds_is_decode_and_correct(model: EnergyFlow) -> None:
    teacher = HashedNgramTeacher(10)
    wanted = mx.array(teacher.embed(["a b", "c d e"]))
    search = Search(num_beams=4, max_length=6)
    before, after = model.decode(embedding=wanted, search=search), model.decode(embedding=wanted, rounds=4, teacher=teacher, search=search)
    assert after == model.correct(before, wanted, teacher, rounds=4, search=search)
    assert ((teacher.embed(after) - teacher.embed(before)) * np.array(wanted)).sum(1).min() > -1e-6
    surface = model.map_to_surface(wanted)
    read = model.collector.collect(surface.reshape(2, -1))
    first = model.decode(surface, search=search)
    assert model.decode(surface, rounds=2, teacher=teacher, search=search) == model.correct(first, read, teacher, rounds=2, search=search)


def test_refused(model: EnergyFlow) -> None:
    teacher, wanted = HashedNgramTeacher(10), mx.zeros((1, 10)) + 1
    with pytest.raises(ValueError, match="teacher: None came"):
        model.decode(embedding=wanted, rounds=1)
    with pytest.raises(ValueError, match="teacher: its embeddings"):
        model.correct(["a"], wanted, HashedNgramTeacher(9))
    with pytest.raises(ValueError, match=r"wanted.*\[2, 10\]|wanted.*\(2, 10\)"):
        model.correct(["a", "b"], wanted, teacher)
    with pytest.raises(ValueError, match="rounds must be an integer of 0 or more"):
        model.decode(embedding=wanted, rounds=-1, teacher=teacher)
    model.text_corrector = None
    with pytest.raises(ValueError, match=r"text_corrector: this model has none.*text_corrector.json"):
        model.decode(embedding=wanted, rounds=1, teacher=teacher)
    residual = lively_model(input_residual=True)
    residual.text_decoder = model.text_decoder
    with pytest.raises(ValueError, match="input_residual"):
        residual.decode(mx.zeros((1, 12)), rounds=1, teacher=teacher)


def test_a_saved_corrector_is_the_same(model: EnergyFlow, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = EnergyFlow.from_pretrained(tmp_path)
    assert again.text_corrector.settings == SETTINGS
    arrays = [dict(tree_flatten(each.text_corrector.parameters())) for each in (model, again)]
    assert arrays[0].keys() == arrays[1].keys() and all(mx.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [("prefix", 0), ("prefix", "2"), ("end", 20), ("max_length", None), ("t5", 3), ("t5", {}), ("other", 1), ("adapter_dim", 8),
     ("t5", {**dataclasses.asdict(T5), "layers": 2}), ("t5", {**dataclasses.asdict(T5), "dropout": 1.5}), ("t5", {**dataclasses.asdict(T5), "heads": 3}),
     ("t5", {**dataclasses.asdict(T5), "activation": "tanh"}), ("max_length", 2**63), ("t5", {**dataclasses.asdict(T5), "max_distance": 2**40}),
     ("prefix", 2**31 - 1), ("t5", {**dataclasses.asdict(T5), "eps": "1e-6"}), ("t5", {**dataclasses.asdict(T5), "gated": []})],
)  # fmt: skip
def test_a_damaged_record_is_refused_by_name(field: str, value: object, model: EnergyFlow, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / "text_corrector.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match="text_corrector"):
        EnergyFlow.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="text_corrector.json is missing"):
        EnergyFlow.from_pretrained(tmp_path)
