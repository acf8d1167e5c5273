"""Texts embedded by several processes: the first one has the texts and gets all rows, the others `serve`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..distributed import World
from .teacher import Teacher, open_teacher

Rows = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Rows]


class SharedTeacher:
    """The teacher of the first process, of which each other one opens its own.

    Args:
        how: the arguments of `open_teacher`, which all processes call.
    """

    def __init__(self, world: World, **how: Any) -> None:
        self._world, self._teacher = world, open_teacher(**how)
        self.dim, self.name, self.fingerprint = self._teacher.dim, self._teacher.name, self._teacher.fingerprint
        world.exchange({"open": how, "fingerprint": self.fingerprint})

    def embed(self, texts: Sequence[str]) -> Rows:
        """As `Teacher.embed`; each process embeds its share."""
        self._world.exchange({"texts": list(texts)})
        return spread(self._teacher.embed, texts, self.dim, self._world)


def serve(world: World) -> None:
    """What the other processes do until the first one calls `dismiss`.

    Raises:
        ValueError: the teacher is another one on this host; or as `open_teacher`.
    """
    teacher: Teacher | None = None
    while (message := world.exchange(None)[0]) is not None:
        if "open" in message:
            teacher = open_teacher(**message["open"])
            if teacher.fingerprint != message["fingerprint"]:
                raise ValueError(f"teacher={message['open']['spec']!r} is {teacher.name} here, with other weights than that of the first process")
        elif teacher is not None:
            spread(teacher.embed, message["texts"], teacher.dim, world)


def dismiss(world: World) -> None:
    """Let the processes that serve go on."""
    if world.size > 1:
        world.exchange(None)


def spread(embed: Embed, texts: Sequence[str], dim: int, world: World) -> Rows:
    """`embed(texts)` [N, dim]; each process embeds every `world.size`-th text, and all have `texts`."""
    own = texts[world.rank :: world.size]
    rows = np.empty((len(texts), dim), np.float32)
    for rank, share in enumerate(world.gather(embed(own) if own else rows[:0])):
        rows[rank :: world.size] = share
    return rows
