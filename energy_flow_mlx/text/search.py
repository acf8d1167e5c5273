"""Greedy and beam search over the next-token scores of any decoder, with the results of Hugging Face's `generate`.

All bookkeeping is done on the device with shapes that do not change. The host reads one thing a token, whether all texts are finished,
and reads it one token late, so that the device never waits; the extra token changes nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..checks import check_int

MOST_TOKENS = 4096
MOST_BEAMS = 256
MOST_PENALTY = 10.0
_NEVER = -1e30  # added to the score of what must not be chosen; finite, and beyond what a length penalty makes of any score
EARLY_STOPPING = (False, True, "never")

# Tokens [R] at a position (a scalar) and a tree of arrays [R, ...], the cache -> logits [R, V] of the next tokens, and the cache.
Step = Callable[[mx.array, mx.array, Any], tuple[mx.array, Any]]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How texts are looked for.

    Args:
        num_beams: texts kept at a time; 1: greedy, the best token at each place.
        max_length: the most tokens, the start token and the end token included; 2 to 4096.
        min_length: no end before there are this many tokens, the start token included.
        length_penalty: beams are compared by log-probability / length ** length_penalty; -10 to 10.
        early_stopping: when a beam search ends: False, once the best open beam could not win at its present length; "never", once it could
            not win at any length; True, once there are num_beams finished texts.
        no_repeat_ngram_size: no run of so many tokens occurs twice; 0: no such rule.
        temperature: over 0, with one beam: a token is not the best one but drawn, with probabilities softmax(logits / temperature).
        seed: of what is drawn; texts that are looked for together are drawn apart.

    Raises:
        TypeError, ValueError: names the argument, what came and what is accepted.
    """

    num_beams: int = 4
    max_length: int = 64
    min_length: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("num_beams", self.num_beams, 1, MOST_BEAMS)
        check_int("max_length", self.max_length, 2, MOST_TOKENS)
        check_int("min_length", self.min_length, 0, self.max_length)
        check_int("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        if not any(self.early_stopping is accepted for accepted in (False, True)) and self.early_stopping != "never":
            raise ValueError(f"early_stopping must be one of False, True and 'never', got {self.early_stopping!r}")
        number = isinstance(self.length_penalty, int | float) and not isinstance(self.length_penalty, bool)
        if not number or not abs(self.length_penalty) <= MOST_PENALTY:
            raise ValueError(f"length_penalty must be a number from -10 to 10, got {self.length_penalty!r}")
        check_int("seed", self.seed, 0)
        drawn = isinstance(self.temperature, int | float) and 0 <= self.temperature <= MOST_PENALTY
        if not drawn or (self.temperature and self.num_beams > 1):
            raise ValueError(f"temperature must be a number from 0 to 10, and 0 with several beams, got {self.temperature!r}")


def search(step: Step, cache: Any, texts: int, vocab_size: int, settings: Search, *, start: int, end: int) -> list[list[int]]:
    """The tokens of the best text found for each, as `search_all` gives them.

    Raises:
        ValueError: as `search_all`; or nothing was found for one.
    """
    found = search_all(step, cache, texts, vocab_size, settings, start=start, end=end)
    if not all(found):
        raise ValueError(f"no text was found for row {found.index([])}: the decoder's scores of the next token are no numbers, as with damaged weights")
    return [each[0] for each in found]


def search_all(step: Step, cache: Any, texts: int, vocab_size: int, settings: Search, *, start: int, end: int) -> list[list[list[int]]]:
    """The tokens of texts, the best found first: for each as many as num_beams, or fewer where fewer were finished. They are without the
    start token, and with the end token unless the length limit came first.

    Args:
        step, cache: of a decoder; rows R = texts * num_beams, those of a text side by side.
        texts: how many, N.
        vocab_size: V.
        start, end: token ids.

    Raises:
        ValueError: more beams than half of the vocabulary.
    """
    if settings.num_beams > 1 and 2 * settings.num_beams > vocab_size:
        raise ValueError(f"num_beams must be at most half of the vocabulary of {vocab_size} tokens, got {settings.num_beams}")
    kind: Any = _Greedy if settings.num_beams == 1 else _Beams
    looking = kind(step, settings, vocab_size, start, end)
    state = looking.begin(texts, cache)
    before = None
    for position in range(settings.max_length - 1):
        state = looking.advance(mx.array(position), state)
        mx.async_eval(state)
        if before is not None and before.item():
            break
        before = mx.all(state.done)
    tokens, lengths = (np.array(array) for array in looking.result(state))
    return [
        [row[1:length].tolist() for row, length in zip(*beams, strict=True) if length > 1]  # 1: there is no such finished text
        for beams in zip(tokens, lengths, strict=True)
    ]


class _Looking:
    """What both searches share: the step, and the rules on tokens."""

    def __init__(self, step: Step, settings: Search, vocab_size: int, start: int, end: int) -> None:
        self.step, self.settings, self.vocab_size, self.start, self.end = step, settings, vocab_size, start, end

    def blank(self, *rows: int) -> mx.array:
        """Sequences [*rows, L] that begin with the start token."""
        tokens = mx.full((*rows, self.settings.max_length), self.end, mx.int32)
        tokens[..., 0] = self.start
        return tokens

    def allowed(self, scores: mx.array, sequences: mx.array, position: mx.array) -> mx.array:
        """Scores [R, V] with -inf for the tokens that may not follow position `position` of sequences [R, L]."""
        if self.settings.min_length:
            ends = (mx.arange(self.vocab_size) == self.end) & (position + 1 < self.settings.min_length)
            scores = mx.where(ends, -math.inf, scores)
        size = self.settings.no_repeat_ngram_size
        if 0 < size <= self.settings.max_length:
            scores = scores + _repeated(sequences, position, size, self.vocab_size)
        return scores


def _repeated(sequences: mx.array, position: mx.array, size: int, vocab_size: int) -> mx.array:
    """[R, V]: -inf for each token that would end a run of `size` tokens which is in sequences [R, L] up to `position` already; else 0."""
    rows, length = sequences.shape
    begins = mx.arange(length - size + 1)  # of the runs
    same = mx.broadcast_to(begins + size - 1 <= position, (rows, begins.size))
    for offset in range(size - 1):
        latest = mx.take(sequences, mx.maximum(position + offset - size + 2, 0).reshape(1), axis=1)  # [R, 1]
        same = same & (sequences[:, offset : offset + begins.size] == latest)
    bans = mx.where(same, -math.inf, 0.0)
    return mx.zeros((rows, vocab_size)).at[mx.arange(rows)[:, None], sequences[:, size - 1 :]].add(bans)


class _GreedyState(NamedTuple):
    tokens: mx.array  # [N, L]
    lengths: mx.array  # [N]
    done: mx.array  # [N]
    cache: Any


class _Greedy(_Looking):
    def begin(self, texts: int, cache: Any) -> _GreedyState:
        return _GreedyState(self.blank(texts), mx.ones((texts,), mx.int32), mx.zeros((texts,), mx.bool_), cache)

    def advance(self, position: mx.array, state: _GreedyState) -> _GreedyState:
        latest = mx.take(state.tokens, position, axis=1)
        logits, cache = self.step(latest, position, state.cache)
        scores = self.allowed(logits.astype(mx.float32), state.tokens, position)
        if self.settings.temperature:  # the largest of logits and Gumbel noise is a draw from their softmax
            scores = scores + self.settings.temperature * mx.random.gumbel(scores.shape, key=self._keys[position])
        following = mx.argmax(scores, axis=-1)
        following = mx.where(state.done, self.end, following).astype(mx.int32)
        lengths = mx.where(state.done, state.lengths, position + 2)
        return _GreedyState(_put(state.tokens, following, position + 1), lengths, state.done | (following == self.end), cache)

    @cached_property
    def _keys(self) -> mx.array:
        return mx.random.split(mx.random.key(self.settings.seed), self.settings.max_length)

    def result(self, state: _GreedyState) -> tuple[mx.array, mx.array]:
        return state.tokens[:, None], state.lengths[:, None]


class _BeamState(NamedTuple):
    tokens: mx.array  # [N, beams, L], open texts
    scores: mx.array  # [N, beams], their log-probabilities, falling
    best: mx.array  # [N, beams, L], finished texts
    best_scores: mx.array  # [N, beams], their log-probabilities over length ** penalty, falling
    lengths: mx.array  # [N, beams], of finished texts
    finished: mx.array  # [N, beams], whether there is a finished text
    improving: mx.array  # [N, 1], whether an open text may still become the best
    cache: Any

    @property
    def done(self) -> mx.array:
        return ~self.improving


class _Beams(_Looking):
    """Twice as many continuations as beams are looked at, so that as many as beams stay open even if the best ones all end."""

    def begin(self, texts: int, cache: Any) -> _BeamState:
        beams = self.settings.num_beams
        # The beams start equal: only the first one counts.
        scores = mx.broadcast_to(mx.where(mx.arange(beams) == 0, 0.0, _NEVER), (texts, beams))
        return _BeamState(
            tokens=self.blank(texts, beams),
            scores=scores,
            best=self.blank(texts, beams),
            best_scores=mx.full((texts, beams), _NEVER),
            lengths=mx.ones((texts, beams), mx.int32),
            finished=mx.zeros((texts, beams), mx.bool_),
            improving=mx.ones((texts, 1), mx.bool_),
            cache=cache,
        )

    def advance(self, position: mx.array, state: _BeamState) -> _BeamState:
        texts, beams, room = state.tokens.shape
        latest = mx.take(state.tokens, position, axis=2).reshape(-1)
        logits, cache = self.step(latest, position, state.cache)
        logits = logits.astype(mx.float32)
        scores = self.allowed(logits - mx.logsumexp(logits, axis=-1, keepdims=True), state.tokens.reshape(-1, room), position)
        scores = (scores.reshape(texts, beams, -1) + state.scores[..., None]).reshape(texts, -1)
        scores, chosen = _top(scores, 2 * beams)  # [N, 2 beams]
        beam, token = chosen // self.vocab_size, (chosen % self.vocab_size).astype(mx.int32)
        tokens = _put(_pick(state.tokens, beam), token, position + 1)
        ends = (token == self.end) | (position + 2 >= room)

        open_scores, kept = _top(scores + ends * _NEVER, beams)
        rows = (mx.arange(texts)[:, None] * beams + _pick(beam, kept)).reshape(-1)
        after = state._replace(
            tokens=_pick(tokens, kept), scores=open_scores, cache=tree_map(lambda kept_rows: mx.take(kept_rows, rows, axis=0), cache)
        )
        return self._improving(position, self._finish(position, after, tokens, scores, ends))

    def _finish(self, position: mx.array, state: _BeamState, tokens: mx.array, scores: mx.array, ends: mx.array) -> _BeamState:
        """Keep the best of the finished texts and of the continuations that end here."""
        beams = self.settings.num_beams
        new = ends & (mx.arange(2 * beams) < beams)
        new_scores = scores / self._divisor(position + 1) + ~(new & state.improving) * _NEVER
        best_scores, kept = _top(mx.concatenate([state.best_scores, new_scores], axis=1), beams)
        lengths = mx.broadcast_to(position + 2, new.shape)
        return state._replace(
            best=_pick(mx.concatenate([state.best, tokens], axis=1), kept),
            best_scores=best_scores,
            lengths=_pick(mx.concatenate([state.lengths, lengths], axis=1), kept),
            finished=_pick(mx.concatenate([state.finished, new & state.improving], axis=1), kept),
        )

    def _improving(self, position: mx.array, state: _BeamState) -> _BeamState:
        """Look whether the best open text may still become better than the worst of the finished ones."""
        if self.settings.early_stopping is True:
            more = ~mx.all(state.finished, axis=1, keepdims=True)
        else:  # where there are fewer finished texts than beams, the worst one is _NEVER
            longest = self.settings.early_stopping == "never" and self.settings.length_penalty > 0
            length = mx.array(self.settings.max_length - 1) if longest else position + 1
            possible = state.scores[:, :1] / self._divisor(length)
            more = possible > mx.min(state.best_scores, axis=1, keepdims=True)
        return state._replace(improving=state.improving & more)

    def _divisor(self, length: mx.array) -> mx.array:
        """length ** length_penalty."""
        return self._powers[length - 1]

    @cached_property
    def _powers(self) -> mx.array:
        return mx.array([float(length) ** self.settings.length_penalty for length in range(1, self.settings.max_length)])

    def result(self, state: _BeamState) -> tuple[mx.array, mx.array]:
        return state.best, state.lengths


def _top(scores: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest of scores [N, M], falling, and their columns."""
    columns = mx.argpartition(-scores, count - 1, axis=-1)[:, :count]
    found = mx.take_along_axis(scores, columns, axis=-1)
    order = mx.argsort(-found, axis=-1)
    return mx.take_along_axis(found, order, axis=-1), mx.take_along_axis(columns, order, axis=-1)


def _pick(array: mx.array, columns: mx.array) -> mx.array:
    """array [N, M, ...], columns [N, K] -> [N, K, ...]."""
    return mx.take_along_axis(array, columns.reshape(*columns.shape, *[1] * (array.ndim - 2)), axis=1)


def _put(sequences: mx.array, tokens: mx.array, position: mx.array) -> mx.array:
    """sequences [..., L] with tokens [...] at `position`."""
    return mx.slice_update(sequences, tokens[..., None], position.reshape(1), axes=[sequences.ndim - 1])
