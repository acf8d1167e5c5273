"""Summaries and statistics of a dataset, as lines of text."""

from array import array
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .folder import PARTS, DatasetFolder
from .records import Placed

_SHOWN = 100  # characters of an example


def summary(folder: DatasetFolder) -> list[str]:
    """The contents of dataset.json as lines of text."""
    about = folder.about
    parts = ", ".join(f"{name} {folder.sizes[name]:,}" for name in PARTS)
    teacher = about["teacher"]["name"] if about.get("teacher") else "none, all embeddings are from the sources"
    size = sum((folder.path / name).stat().st_size for name in about["files"])
    left_out = about.get("left_out") or {}
    least, greatest = about["lengths"]
    what = "distinct texts and embeddings" if about["given_embeddings"] else "distinct texts"
    lengths = "length 1" if about["normalised"] else f"lengths {least:.4g} to {greatest:.4g}"
    return [
        f"{folder.path}: {sum(folder.sizes.values()):,} pairs ({parts}), {size / 2**20:.1f} MiB",
        f"teacher: {teacher}; {folder.rows:,} {what}, E = {folder.dim}, {lengths}",
        *(f"left out: {count:,} {kind}" for kind, count in left_out.items()),
        f"fingerprint: {folder.fingerprint}",
    ]


def statistics(records: Iterable[Placed], examples: int) -> list[str]:
    """Counts, lengths, duplicates and the first `examples` records, in one pass over the records."""
    count, duplicates = 0, 0
    shown: list[str] = []
    characters = {"input": array("q"), "target": array("q")}
    tokens, norms = array("q"), array("d")
    seen: set[bytes] = set()
    premises: set[bytes] = set()
    has: dict[str, int] = {}
    dim = 0
    for place, record in records:
        count += 1
        texts = [record.input, record.target]
        for name, text in zip(characters, texts, strict=True):
            if text is not None:
                characters[name].append(len(text))
        for name, value in record._asdict().items():
            has[name] = has.get(name, 0) + (value is not None)
        if record.input_ids is not None:
            tokens.append(len(record.input_ids))
        for embedding in (record.input_embedding, record.target_embedding):
            if embedding is not None:
                dim = len(embedding)
                norms.append(float(np.linalg.norm(embedding)))
        premise = _key(record.input, record.input_embedding, record.input_ids)
        pair = premise + _key(record.target, record.target_embedding)
        duplicates += pair in seen
        seen.add(pair)
        premises.add(premise)
        if len(shown) < examples:
            shown.append(f"  {place.unit} {place.number}: {_short(record.input)} -> {_short(record.target)}")
    lines = [f"{count:,} pairs, {len(premises):,} distinct inputs, {duplicates:,} duplicate pairs"]
    lines += [
        f"{name.replace('_', ' ')}: {times:,} pairs"
        for name, times in has.items()
        if times and name != "attention_mask"
    ]
    lines += [f"{name} characters: {_quantiles(lengths)}" for name, lengths in characters.items() if lengths]
    lines += [f"input tokens: {_quantiles(tokens)}"] if tokens else []
    lines += [f"embeddings: E = {dim}, lengths {_quantiles(norms)}"] if norms else []
    return lines + (["examples:", *shown] if shown else [])


def _key(text: str | None, *arrays: NDArray[Any] | None) -> bytes:
    """A hash of the text or, without one, of the first array (any shape) that is present."""
    contents = [b"" if text is None else text.encode(), *(array.tobytes() for array in arrays if array is not None)]
    return blake2b(next(filter(None, contents), b""), digest_size=16).digest()


def _quantiles(values: Any) -> str:
    least, median, high, most = np.quantile(np.array(values), [0, 0.5, 0.95, 1])
    return f"{least:.4g} to {most:.4g}, median {median:.4g}, 95 % up to {high:.4g}"


def _short(text: str | None) -> str:
    if text is None:
        return "(no text)"
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
