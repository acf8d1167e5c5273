"""What a conversion prints of its tensors: a line a module, or the table of all of them."""

import itertools
import textwrap
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
    return "\n".join([*lines, _counted(rows)])


def summary(rows: Sequence[Row]) -> str:
    """A line for each module of the target with its tensors, and a last one that counts them by action."""
    modules: dict[str, list[Row]] = {}
    for row in rows:
        modules.setdefault(row.target.split(".")[0], []).append(row)
    width = max(map(len, modules))
    return "\n".join([*(f"{name:{width}}  {_counted(own)}" for name, own in modules.items()), f"{'all':{width}}  {_counted(rows)}"])


def _counted(rows: Sequence[Row]) -> str:
    counts = Counter(row.action for row in rows)
    return f"{len(rows)} tensors: " + ", ".join(f"{count} {action}" for action, count in counts.items())


def shortened(note: str) -> str:
    """A remark on one line of at most 200 characters, cut between words."""
    return textwrap.shorten(note, 200, placeholder=" ... (--verbose shows all)")
