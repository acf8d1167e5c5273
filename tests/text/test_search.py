"""Greedy and beam search find, token for token, what transformers' `generate` finds."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from models.t5 import KINDS, ours, prefixes, torch_generate, torch_t5

from energy_flow_mlx.text.search import Search, search, search_all

GREEDY: list[dict[str, Any]] = [{}, {"min_length": 9}, {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2, "min_length": 10}, {"max_length": 2}]
BEAMS: list[dict[str, Any]] = [
    {},
    {"early_stopping": True},
    {"early_stopping": "never", "length_penalty": 2.0},
    {"length_penalty": 0.0},
    {"length_penalty": -1.0, "min_length": 4},
    {"length_penalty": 0.6, "no_repeat_ngram_size": 2, "early_stopping": True},
    {"no_repeat_ngram_size": 3, "num_beams": 2, "min_length": 8},
    {"num_beams": 11, "max_length": 8},
    {"max_length": 2},
]
def find(model: Any, prefix: np.ndarray, **options: Any) -> list[list[int]]:
    settings = Search(**options)
    step, cache = ours(model).start(mx.repeat(mx.array(prefix), settings.num_beams, axis=0), settings.max_length)
    return search(step, cache, len(prefix), model.config.vocab_size, settings, start=0, end=1)


@pytest.mark.parametrize("options", [*({"num_beams": 1} | each for each in GREEDY), *({"num_beams": 3} | each for each in BEAMS)], ids=str)
def test_the_tokens_are_those_of_generate(options: dict[str, Any]) -> None:
    options = {"max_length": 10} | options
    for seed, kind in ((7, "gated, untied"), (5, "odd")):
        model = torch_t5(seed, **KINDS[kind])
        prefix = prefixes(3, 1, model.config.d_model, seed=4)
        assert find(model, prefix, **options) == torch_generate(model, prefix, **options)


def walk(following: np.ndarray, settings: Search, texts: int = 1, end: int = 0) -> list[list[int]]:
    """A search over a table: following[token] are the logits of the next."""
    table = mx.array(following.astype(np.float32))
    return search(lambda tokens, position, cache: (table[tokens], cache), [], texts, len(table), settings, start=1, end=end)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("length", [2, 15])
def test_never_beyond_the_length_limit(beams: int, length: int) -> None:
    never_ends = np.zeros((12, 12))
    never_ends[:, 0], never_ends[:, 7] = -100.0, 5.0
    for row in walk(never_ends, Search(num_beams=beams, max_length=length), texts=2):
        assert row == [7] * (length - 1)


def test_it_stops_when_all_texts_are_finished() -> None:
    steps = []
    ends = mx.zeros((4, 4))
    ends[:, 0] = 50.0

    def step(tokens: mx.array, position: mx.array, cache: Any) -> tuple[mx.array, Any]:
        steps.append(position.item())
        return ends[tokens], cache

    for beams in (1, 2):
        steps.clear()
        assert search(step, [], 3, 4, Search(num_beams=beams, max_length=4000), start=1, end=0) == [[0]] * 3
        assert len(steps) <= 4  # the host looks one token late


def test_beams_find_what_greed_misses() -> None:
    #       end  start a    b
    table = np.log([[1e-9, 1e-9, 1e-9, 1e-9], [1e-9, 1e-9, 0.6, 0.4], [0.3, 0.1, 0.3, 0.3], [0.97, 0.01, 0.01, 0.01]])
    options = {"max_length": 6, "length_penalty": 0.0, "early_stopping": "never"}
    assert walk(table, Search(num_beams=1, max_length=6))[0][0] == 2
    assert walk(table, Search(num_beams=2, **options)) == [[3, 0]]


def test_never_looks_at_the_present_length_where_short_texts_are_favoured() -> None:
    """The text that wins is open when two are finished; at the greatest length, where the penalty is hardest, it would lose."""
    table = np.full((6, 6), -30.0)
    for token, following in {1: {2: 0.9, 0: 0.09}, 2: {3: 0.9, 0: 0.09}, 3: {4: 0.4, 5: 0.35, 1: 0.24}, 4: {0: 0.99}, 5: {5: 0.9}}.items():
        for next_token, probability in following.items():
            table[token, next_token] = np.log(probability)
    settings = Search(num_beams=2, max_length=12, length_penalty=-0.5, early_stopping="never")
    assert walk(table, settings) == [[2, 3, 4, 0]]


def test_the_hardest_penalty_leaves_a_text() -> None:
    """Its scores, here of 1e13 and beyond, are still better than none."""
    table = np.log([[0.01, 0.01, 0.97, 0.01], [0.01, 0.01, 0.97, 0.01], [0.5, 0.01, 0.48, 0.01], [0.01, 0.01, 0.97, 0.01]])
    assert walk(table, Search(num_beams=2, max_length=30, min_length=20, length_penalty=-10.0)) == [[2] * 19 + [0]]


def test_beams_carry_their_cache_along() -> None:
    """The cache here is the text itself: where a beam's rows went elsewhere, they would differ."""
    table = mx.array(np.random.default_rng(0).standard_normal((30, 30)).astype(np.float32))
    seen = []

    def step(tokens: mx.array, position: mx.array, cache: list[mx.array]) -> tuple[mx.array, list[mx.array]]:
        cache = [mx.slice_update(cache[0], tokens[:, None], position.reshape(1), axes=[1])]
        seen.append(np.array(cache[0]))
        return table[tokens] + table[mx.take(cache[0], mx.maximum(position - 1, 0), axis=1)], cache

    rows = search(step, [mx.zeros((6, 12), mx.int32)], 2, 30, Search(num_beams=3, max_length=12, min_length=12), start=1, end=0)
    for text, row in enumerate(rows):
        held = seen[-1][3 * text : 3 * text + 3, :11]
        assert [1, *row[:-1]] in held.tolist()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 0}, "num_beams.*0"),
        ({"num_beams": 1.5}, "num_beams.*1.5"),
        ({"max_length": 1}, "max_length.*from 2 to 4096, got 1"),
        ({"max_length": 10**9}, "max_length.*from 2 to 4096"),
        ({"temperature": -1.0, "num_beams": 1}, "temperature.*0 to 10.*-1.0"),
        ({"temperature": 1.0}, "temperature.*several beams"),
        ({"seed": -1}, "seed.*-1"),
        ({"min_length": 65}, "min_length.*from 0 to 64, got 65"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size.*-1"),
        ({"early_stopping": "always"}, "early_stopping.*'never', got 'always'"),
        ({"early_stopping": 1}, "early_stopping.*got 1"),
        ({"length_penalty": float("nan")}, "length_penalty.*nan"),
        ({"length_penalty": "1"}, "length_penalty.*'1'"),
        ({"length_penalty": 11}, "length_penalty.*11"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        Search(**options)


def test_more_beams_than_the_vocabulary_can_fill() -> None:
    with pytest.raises(ValueError, match="num_beams must be at most half of the vocabulary of 12 tokens, got 7"):
        walk(np.zeros((12, 12)), Search(num_beams=7))


def test_scores_that_are_no_numbers_are_no_text() -> None:
    with pytest.raises(ValueError, match=r"no text was found for row 0: the decoder's scores of the next token are no numbers"):
        walk(np.full((12, 12), np.nan), Search(num_beams=2, max_length=4))


def test_all_beams_come_back_the_best_first() -> None:
    """Four texts of one token and the end, whose probabilities are known."""
    table = np.full((12, 12), -30.0)
    table[1, [4, 5, 6, 7]] = np.log([0.4, 0.3, 0.2, 0.1])
    table[4:8, 0] = 0.0
    logits = mx.array(table.astype(np.float32))

    def found(beams: int) -> list[list[list[int]]]:
        settings = Search(num_beams=beams, max_length=5)
        return search_all(lambda tokens, position, cache: (logits[tokens], cache), [], 2, 12, settings, start=1, end=0)

    assert found(4) == [[[4, 0], [5, 0], [6, 0], [7, 0]]] * 2
    assert found(1) == [[[4, 0]]] * 2


def test_a_temperature_draws_from_the_softmax() -> None:
    table = np.full((8, 8), -60.0)
    table[1, [4, 5]] = np.log([0.8, 0.2])
    table[4:6, 0] = 0.0

    def share(temperature: float, seed: int = 0) -> float:
        return np.mean([row == [5, 0] for row in walk(table, Search(num_beams=1, temperature=temperature, seed=seed), texts=4000)])

    assert share(0.0) == 0.0
    assert share(1.0) == pytest.approx(0.2, abs=0.03) and share(1.0) == share(1.0) != share(1.0, seed=1)
    assert share(2.0) == pytest.approx(1 / 3, abs=0.03)  # sqrt(0.2) / (sqrt(0.2) + sqrt(0.8))
