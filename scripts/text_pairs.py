"""What the tools that make datasets of real text share: words, word overlap, and one JSONL file a part."""

import argparse
import json
import random
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from energy_flow_mlx.files import write_folder

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


class TextPair(NamedTuple):
    """A pair, and the key of its source: a verse's or a synset's id."""

    key: int
    input: str
    target: str


def words(text: str) -> list[str]:
    """The words of a text in lower case; an apostrophe within a word belongs to it."""
    return _WORD.findall(text.lower())


def overlap(one: str, other: str) -> float:
    """Jaccard index of two texts' sets of words, 0 to 1; of two texts without words 0."""
    left, right = set(words(one)), set(words(other))
    return len(left & right) / len(left | right) if left or right else 0.0


def within(text: str, shortest: int, longest: int) -> bool:
    """Whether a text has `shortest` to `longest` words."""
    return shortest <= len(words(text)) <= longest


def median_overlap(pairs: Sequence[TextPair]) -> tuple[float, float]:
    """Median overlap of the pairs, and of the same inputs with shuffled targets: what chance alone gives."""
    shuffled = [pair.target for pair in pairs]
    random.Random(0).shuffle(shuffled)
    own = statistics.median(overlap(pair.input, pair.target) for pair in pairs)
    chance = statistics.median(overlap(pair.input, target) for pair, target in zip(pairs, shuffled, strict=True))
    return own, chance


def write_parts(folder: Path, parts: Mapping[str, Sequence[TextPair]]) -> None:
    """Write FOLDER/<part>.jsonl for each part, all of them or none.

    Raises:
        ValueError: a part has no pairs.
    """
    empty = [name for name, pairs in parts.items() if not pairs]
    if empty:
        raise ValueError(f"{folder}: nothing is left for {', '.join(empty)}; no file is written")

    def writer(pairs: Sequence[TextPair]) -> Callable[[Path], int]:
        lines = "".join(json.dumps(pair._asdict(), ensure_ascii=False) + "\n" for pair in pairs)
        return lambda path: path.write_text(lines, encoding="utf-8")

    write_folder(folder, {f"{name}.jsonl": writer(pairs) for name, pairs in parts.items()})


def counted(folder: Path, parts: Mapping[str, Sequence[TextPair]], left_out: Mapping[str, int]) -> str:
    """How many pairs were made, by part, and how many were left out and why."""
    counts = ", ".join(f"{name} {len(part):,}" for name, part in parts.items())
    made = f"{folder}: {sum(map(len, parts.values())):,} pairs ({counts})"
    return "\n".join([made, *(f"left out: {count:,} {reason}" for reason, count in left_out.items())])


def report(folder: Path, parts: Mapping[str, Sequence[TextPair]], left_out: Mapping[str, int]) -> str:
    """`counted`, and how much the two sides share."""
    pairs = [pair for part in parts.values() for pair in part]
    own, chance = median_overlap(pairs)
    return "\n".join(
        [
            counted(folder, parts, left_out),
            f"median word overlap (Jaccard): {own:.2f}; of shuffled pairs {chance:.2f}",
        ]
    )


def run(make: Callable[[argparse.Namespace], str], options: argparse.Namespace) -> int:
    """What a tool makes of its options: prints what `make` returns; returns the exit code: 0, or 2 (refused)."""
    try:
        print(make(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
