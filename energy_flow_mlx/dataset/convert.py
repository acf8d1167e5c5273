"""Converting a source of pairs to a file of another format."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.tokenisers import open_tokeniser
from ..text.tokeniser import Tokeniser
from .formats import HOLDS, format_to_write, write_file
from .origin import Origin
from .records import DataError, Faults, Place, Placed, Record


def convert(
    source: Origin, path: Path, faults: Faults, tokeniser: str | None = None, max_length: int = 128
) -> tuple[int, dict[str, int]]:
    """Write the pairs of `source` to `path`, atomically.

    Args:
        source: the pairs.
        path: the new file; its extension selects the format.
        faults: handles invalid records.
        tokeniser: a spec of `open_tokeniser`; encodes texts that have no tokens and decodes tokens that have no text.
        max_length: tokens after which a text is truncated.

    Returns:
        The number of pairs written; and for each field that the format cannot store, the number of pairs that had it.

    Raises:
        FileNotFoundError, ValueError: a source, the tokeniser or the new file is invalid.
    """
    chosen = format_to_write(path)
    opened = None if tokeniser is None else open_tokeniser(tokeniser)
    lost: Counter[str] = Counter()

    def records() -> Iterator[Placed]:
        for place, record in source.records(faults):
            try:
                full = record if opened is None else complete(place, record, opened, max_length)
            except DataError as error:
                faults.meet(error)
                continue
            lost.update(
                name.replace("_", " ")
                for name in Record._fields
                if name not in HOLDS[chosen] and name != "attention_mask" and getattr(full, name) is not None
            )
            yield place, full

    info = source.info()
    count = write_file(path, records(), info)
    if chosen not in ("pt", "safetensors") and set(info) - {"source"}:
        lost["generation info"] = 1
    return count, dict(lost)


def check_ids(place: Place, ids: NDArray[np.uint32], tokeniser: Tokeniser) -> None:
    """Raise DataError if one of `ids` [T] is not in the vocabulary."""
    if ids.size and ids.max() >= tokeniser.vocab_size:
        raise place.error("bad tokens", f"holds the id {ids.max()}, the tokeniser has {tokeniser.vocab_size} entries")


def text_of_tokens(place: Place, record: Record, tokeniser: Tokeniser) -> str:
    """Decode a record's tokens, skipping masked ones.

    Raises:
        DataError: an id is not in the vocabulary.
    """
    ids, mask = record.input_ids, record.attention_mask
    assert ids is not None and mask is not None
    check_ids(place, ids, tokeniser)
    return tokeniser.decode(ids[mask > 0])


def complete(place: Place, record: Record, tokeniser: Tokeniser, max_length: int) -> Record:
    """Add what the record lacks: tokens encoded from its input text, or an input text decoded from its tokens."""
    if record.input is None and record.input_ids is not None:
        return record._replace(input=text_of_tokens(place, record, tokeniser))
    if record.input is not None and record.input_ids is None:
        tokens = tokeniser.encode([record.input], max_length)
        count = int(tokens.attention_mask.sum())  # the padding is at the end
        ids, mask = tokens.input_ids[0, :count], tokens.attention_mask[0, :count]
        return record._replace(input_ids=ids.astype(np.uint32), attention_mask=mask.astype(np.uint8))
    return record
