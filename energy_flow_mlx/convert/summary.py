"""The table of tensors that a conversion prints."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .torch_keys import Converted


class Row(NamedTuple):
    """One line: source keys, target key, the target's shape and what was done."""

    sources: str
    target: str
    shape: tuple[int, ...]
    action: str


def rows_of(converted: Mapping[str, Converted]) -> list[Row]:
    """One row per target tensor."""
    return [Row(joined(item.sources), name, tuple(item.value.shape), item.action) for name, item in converted.items()]


def joined(keys: Sequence[str]) -> str:
    """Join keys, writing their common prefix once: a.{b.weight, c.weight}."""
    if len(keys) == 1:
        return keys[0]
    parts = [key.split(".") for key in keys]
    same = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False)))
    start = ".".join(parts[0][:same])
    return f"{start}.{{{', '.join(key.removeprefix(start + '.') for key in keys)}}}" if start else " + ".join(keys)


def by_module(names: Iterable[str]) -> str:
    """Count names by module: 'carrier 16, mapper 13'."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{module} {count}" for module, count in counts.items())


def table(rows: Sequence[Row], headers: tuple[str, str] = ("torch", "mlx")) -> str:
    """The rows in aligned columns, and a last line that counts them by action."""
    cells = [(*headers, "shape", "done")]
    cells += [(row.sources, row.target, "x".join(map(str, row.shape)) or "scalar", row.action) for row in rows]
    widths = [max(len(cell[column]) for cell in cells) for column in range(4)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip() for cell in cells]
    counts = Counter(row.action for row in rows)
    lines.append(f"{len(rows)} tensors: " + ", ".join(f"{count} {action}" for action, count in counts.items()))
    return "\n".join(lines)
