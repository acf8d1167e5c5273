"""The table that a conversion prints."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .torch_keys import Converted


class Row(NamedTuple):
    """One line: source keys, target key, shape and what was done."""

    sources: str
    target: str
    shape: tuple[int, ...]
    action: str


def rows_of(converted: Mapping[str, Converted]) -> list[Row]:
    """A row for each target."""
    return [Row(joined(item.sources), name, tuple(item.value.shape), item.action) for name, item in converted.items()]


def joined(keys: Sequence[str]) -> str:
    """Keys in one line, what they begin with once: a.{b.weight, c.weight}."""
    if len(keys) == 1:
        return keys[0]
    parts = [key.split(".") for key in keys]
    same = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False)))
    start = ".".join(parts[0][:same])
    return f"{start}.{{{', '.join(key.removeprefix(start + '.') for key in keys)}}}" if start else " + ".join(keys)


def by_module(names: Iterable[str]) -> str:
    """How many names each module has: 'carrier 16, mapper 13'."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{module} {count}" for module, count in counts.items())


def table(rows: Sequence[Row], headers: tuple[str, str] = ("torch", "here")) -> str:
    """The rows in columns, and how many of each action there are."""
    cells = [(*headers, "shape", "done")]
    cells += [(row.sources, row.target, "x".join(map(str, row.shape)) or "scalar", row.action) for row in rows]
    widths = [max(len(cell[column]) for cell in cells) for column in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip() for cell in cells]
    counts = Counter(row.action for row in rows)
    lines.append(f"{len(rows)} tensors: " + ", ".join(f"{count} {action}" for action, count in counts.items()))
    return "\n".join(lines)
