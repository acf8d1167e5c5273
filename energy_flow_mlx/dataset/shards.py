"""Writing the files of a dataset folder: shards of rows, pairs, tokens."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bar import Bar
from ..data.teacher import Teacher
from ..files import write_aside
from .arrays import open_arrays, save_arrays
from .folder import shard_name
from .formats.pack import join_texts
from .plan import Plan
from .records import DataError
from .spool import PairTable, Spool


def write_shards(
    folder: Path,
    rows: NDArray[np.int64],
    spool: Spool,
    teacher: Teacher | None,
    shard_rows: int,
    batch_size: int,
    quiet: bool,
) -> tuple[list[str], tuple[float, float]]:
    """Write the shards that do not exist yet, each atomically.

    Args:
        folder: the dataset folder.
        rows: row numbers [R] in the spool, in the order to write.
        spool: texts and embeddings of the rows.
        teacher: embeds the rows that have no embedding; None if all have one.
        shard_rows: rows per file.
        batch_size: rows to embed at a time.
        quiet: no progress bar.

    Returns:
        The shards' names, and the smallest and largest length of an embedding.
    """
    names, least, greatest = [], np.inf, 0.0
    given = spool.given()
    with Bar(total=len(rows), desc="embed", unit="text", quiet=quiet) as bar:
        for number, start in enumerate(range(0, len(rows), shard_rows)):
            shard = rows[start : start + shard_rows]
            path = folder / shard_name(number)
            names.append(path.name)
            if not path.is_file():
                blocks = []
                for first in range(0, len(shard), batch_size):
                    block = shard[first : first + batch_size]
                    blocks.append(_embed(block, given, spool, teacher))
                    bar.update(len(block))
                _write_shard(path, np.concatenate(blocks), [spool.text(row) for row in shard])
            else:
                bar.update(len(shard))
            norms = _norms(path)
            least, greatest = min(least, float(norms.min())), max(greatest, float(norms.max()))
    return names, (least, greatest)


def _embed(
    rows: NDArray[np.int64], given: NDArray[np.bool_], spool: Spool, teacher: Teacher | None
) -> NDArray[np.float32]:
    """The embeddings [n, E] of rows [n]: the sources' where they exist, else the teacher's.

    Rows with an embedding from the sources must come last.
    """
    missing = rows[~given[rows]]
    texts = [spool.text(row) or "" for row in missing]
    made = teacher.embed(texts) if teacher is not None and len(missing) else np.zeros((0, spool.dim or 0), np.float32)
    bad = ~np.isfinite(made).all(axis=1)
    if bad.any():
        raise DataError(
            f"the teacher gave NaN or infinity for the text {texts[int(np.argmax(bad))][:80]!r}", "not finite"
        )
    stored = [spool.embedding(row) for row in rows[given[rows]]]
    return np.concatenate([made, np.stack(stored)]) if stored else made


def _write_shard(path: Path, embedding: NDArray[np.float32], texts: list[str | None]) -> None:
    joined, offsets = join_texts(text or "" for text in texts)
    arrays: dict[str, NDArray[Any]] = {
        "embedding": embedding,
        "text": joined,
        "text_offsets": offsets,
        "has_text": np.array([text is not None for text in texts], np.uint8),
    }
    write_aside(path, lambda aside: save_arrays(aside, arrays))


def _norms(path: Path) -> NDArray[np.float32]:
    embedding = open_arrays(path, {"embedding": "F32"})[0]["embedding"]
    return np.concatenate(
        [np.linalg.norm(embedding[start : start + 1024], axis=1) for start in range(0, len(embedding), 1024)]
    )


def write_pairs(path: Path, plan: Plan, table: PairTable) -> None:
    """Write the pairs of `plan`, with the spool's row numbers replaced by those in the folder."""
    place = np.zeros(int(plan.rows.max()) + 1, np.uint32)
    place[plan.rows] = np.arange(len(plan.rows), dtype=np.uint32)
    arrays = {"input": place[table.input[plan.pairs]], "target": place[table.target[plan.pairs]]}
    write_aside(path, lambda aside: save_arrays(aside, arrays))


def write_tokens(path: Path, pairs: NDArray[np.int64], spool: Spool) -> None:
    """Write the sources' tokens of `pairs` [N], concatenated."""
    ids, masks = zip(*(spool.tokens(int(pair)) for pair in pairs), strict=True)
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    arrays = {"ids": np.concatenate(ids), "mask": np.concatenate(masks), "offsets": offsets}
    write_aside(path, lambda aside: save_arrays(aside, arrays))
