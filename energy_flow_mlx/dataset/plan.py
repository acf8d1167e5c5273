"""Selecting pairs from the sources, assigning them to parts, and ordering their texts for embedding."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import is_blank
from ..text.tokeniser import Tokeniser
from .convert import check_ids, text_of_tokens
from .folder import PARTS
from .records import DataError, Faults, Place, Placed, Record
from .split import choose, split_groups
from .spool import Spool

MAX_CHARACTERS = 100_000  # of a text; a longer one takes minutes in a tokeniser
_DEFAULT_HELD_OUT = 1000  # pairs in validation and in test, at most a tenth of all

HeldOut = int | str | None  # a number of pairs, a source, or the default


class Plan(NamedTuple):
    """The selected pairs of a spool, and their rows in the order in which they are embedded and written."""

    pairs: NDArray[np.int64]  # [N], pair numbers in the spool: train, then validation, then test
    sizes: dict[str, int]  # pairs of each part
    rows: NDArray[np.int64]  # [R], row numbers in the spool


def usable(records: Iterable[Placed], tokeniser: Tokeniser | None, faults: Faults) -> Iterator[Placed]:
    """The records in which both sides have a text or an embedding. A missing input text is decoded from the tokens.

    Raises:
        DataError: a record lacks a side, unless `faults` skips it.
    """
    for place, record in records:
        try:
            record = _with_text(place, record, tokeniser, faults)
            _check_sides(place, record)
        except DataError as error:
            faults.meet(error)
            continue
        texts = [text for text in (record.input, record.target) if text is not None]
        if any(map(is_blank, texts)):
            faults.leave_out("with an empty text")
        elif any(len(text) > MAX_CHARACTERS for text in texts):
            faults.leave_out(f"with a text over {MAX_CHARACTERS:,} characters")
        else:
            yield place, record


def _with_text(place: Place, record: Record, tokeniser: Tokeniser | None, faults: Faults) -> Record:
    """Decode a missing text from the tokens. Without their tokeniser, tokens are meaningless and dropped."""
    if record.input_ids is None:
        return record
    if tokeniser is None:
        if record.input is None and record.input_embedding is None:
            raise place.error(
                "no input",
                "has only tokens: name their tokenizer.json with --tokenizer to decode them",
            )
        faults.leave_out("sets of tokens without --tokenizer (their texts are tokenised again)")
        return record._replace(input_ids=None, attention_mask=None)
    check_ids(place, record.input_ids, tokeniser)
    return record if record.input is not None else record._replace(input=text_of_tokens(place, record, tokeniser))


def _check_sides(place: Place, record: Record) -> None:
    for name, text, embedding in (
        ("input", record.input, record.input_embedding),
        ("target", record.target, record.target_embedding),
    ):
        if text is None and embedding is None:
            raise place.error(f"no {name}", f"has neither a text nor an embedding of its {name}")


def make_plan(
    counts: Mapping[str, int],
    held_out: Mapping[str, HeldOut],
    fraction: float,
    limit: int | None,
    seed: int,
    spool: Spool,
    faults: Faults,
) -> Plan:
    """Select and split the pairs of a spool.

    From the training sources a random `fraction` is drawn, then at most `limit` pairs. A pair that shares a premise
    with an earlier part is dropped. Held-out parts that are given as a number are split off the training pairs.

    Args:
        counts: the number of pairs from each part's sources, in the order in which the spool holds them.
        held_out: for validation and test a number of pairs, the name of a source, or None for the default.
        fraction, limit, seed: of the draw from the training sources.
        spool: the pairs.
        faults: counts the pairs that are left out.

    Raises:
        DataError: no training pairs remain.
    """
    table = spool.pairs()
    starts = np.cumsum([0, *counts.values()])
    chosen = {name: start + np.arange(count) for (name, count), start in zip(counts.items(), starts, strict=False)}
    taken = choose(counts["train"], fraction, limit, seed)
    faults.leave_out("not in the fraction, or over the limit", counts["train"] - len(taken))
    chosen["train"] = chosen["train"][taken]
    seen: NDArray[np.int64] = np.zeros(0, np.int64)
    for name, pairs in chosen.items():
        clash = np.isin(table.group[pairs], seen)
        faults.leave_out("with a premise of a held-out source", int(clash.sum()))
        chosen[name] = pairs[~clash]
        seen = np.concatenate([seen, table.group[chosen[name]]])

    train = chosen["train"]
    default = min(_DEFAULT_HELD_OUT, len(train) // 10)
    sizes = {
        name: default if value is None else value for name, value in held_out.items() if not isinstance(value, str)
    }
    parts = split_groups(table.group[train], sizes.get("validation", 0), sizes.get("test", 0), seed)
    faults.leave_out("over the size of a part whose premise they share", parts.left_out)
    if not len(parts.train):
        parts_text = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "held-out sources"
        raise DataError(f"no training pairs remain: {len(train)} pairs, {parts_text}; left out: {faults}", "empty")
    chosen.update({name: train[getattr(parts, name)] for name in ("train", *sizes)})
    pairs = np.concatenate([chosen[name] for name in PARTS])
    rows = np.unique(np.concatenate([table.input[pairs], table.target[pairs]]))
    # Sorted by text length, which reduces padding in the teacher's batches; rows that need no teacher come last.
    order = np.lexsort((rows, spool.lengths()[rows], spool.given()[rows]))
    return Plan(pairs, {name: len(chosen[name]) for name in PARTS}, rows[order])
