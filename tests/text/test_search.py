"""Greedy and beam search find, token for token, what transformers' `generate` finds."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from models.t5 import KINDS, ours, prefixes, torch_generate, torch_t5

from energy_flow_mlx.text.search import Search, search

GREEDY: list[dict[str, Any]] = [{}, {"min_length": 9}, {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2, "min_length": 10}, {"max_length": 2}]
BEAMS: list[dict[str, Any]] = [
    {},
    {"early_stopping": True},
    {"early_stopping": "never"},
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
    options = {"max_length": 12} | options
    for seed, kind in ((7, "gated, untied"), (5, "odd")):
        model = torch_t5(seed, **KINDS[kind])
        prefix = prefixes(3, 1, model.config.d_model, seed=4)
        assert find(model, prefix, **options) == torch_generate(model, prefix, **options)
