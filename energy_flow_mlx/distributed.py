"""The processes of a run that `mlx.launch` starts: who they are, and what they say to each other.

A `World` is passed along to whatever talks to the other processes. `ALONE` is that of a process without a launcher: there nothing is
sent, and nothing costs anything.

Every process must reach the same collectives in the same order, or all wait: a decision that leads to one is made from numbers that are
equal on all, and what the first process does alone (writing, the final table) holds none.
"""

import functools
import os
import socket
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map
from numpy.typing import NDArray

from .place import sharing
from .strict_json import parse_json, to_json
from .watchdog import Door, Watch, deadline, enter

TIMEOUT = 300.0  # seconds, see `joined`
PIECE = 2**26  # bytes of a file that are sent at a time
SHORT = 1016  # bytes of a message that one collective takes
Tree = TypeVar("Tree")
T = TypeVar("T")


class World:
    """The processes of a run, as one of them sees them.

    Args:
        group: of MLX; None: this process is alone.
        timeout: see `joined`.

    Attributes:
        rank: of this process, 0 to size - 1. size: the number of processes. hosts: the host of each.
    """

    def __init__(self, group: mx.distributed.Group | None = None, timeout: float = TIMEOUT) -> None:
        self._group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank(), group.size())
        self.hosts = self.exchange(socket.gethostname())
        self._watch = None if group is None else self._watched(timeout)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    # What the processes tell each other. All must call these, in the same order.

    def mean(self, gradients: Tree) -> Tree:
        """The mean of a tree of arrays over the processes, in float32, sent in buckets of 32 MiB; lazy. Equal bits everywhere."""
        if self.size == 1:
            return gradients
        wide = tree_map(lambda gradient: gradient.astype(mx.float32), gradients)
        return cast(Tree, nn.average_gradients(wide, self._group))

    def sum(self, array: mx.array) -> mx.array:
        """The sum of an array over the processes; lazy. Equal bits everywhere."""
        return array if self.size == 1 else mx.distributed.all_sum(array, group=self._group)

    def all(self, array: mx.array) -> mx.array:
        """The arrays [n, …] of all processes after each other, [size * n, …], by rank; lazy."""
        return array if self.size == 1 else mx.distributed.all_gather(array, group=self._group)

    def exchange(self, value: Any) -> list[Any]:
        """What each process gives, as JSON keeps it, in the order of their ranks. Waits.

        Raises:
            RuntimeError: it did not arrive whole. A ring tells nobody that a process died in the middle of a collective.
        """
        if self.size == 1:
            return [value]
        own = to_json(value, indent=None).encode()
        try:
            return [parse_json(data) for data in self._all_bytes(own)]
        except (ValueError, OverflowError, MemoryError) as error:  # of the text, or of its length
            raise RuntimeError(f"what the processes told each other did not arrive whole: {error}") from error

    def gather(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """The arrays [n, …] of all processes, which may differ in n, by rank. Waits."""
        if self.size == 1:
            return [rows]
        found = self._all_bytes(np.ascontiguousarray(rows).tobytes())
        return [np.frombuffer(data, rows.dtype).reshape(-1, *rows.shape[1:]) for data in found]

    def from_first(self, data: bytes | None, length: int) -> bytes:
        """The `length` bytes of the first process; the others give None. Waits."""
        own = np.zeros(length, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        pieces = (mx.array(own[start : start + PIECE]) for start in range(0, length, PIECE))
        return b"".join(np.array(self.sum(piece)).tobytes() for piece in pieces)

    def in_turn(self, call: Callable[[], T]) -> T:
        """What `call` gives, called by the first process before the others: they find on disk what it left there."""
        if not self.first:
            self.exchange(None)
        found = call()
        if self.first:
            self.exchange(None)
        return found

    def require_same(self, what: str, tree: Any) -> None:
        """See that a tree of arrays has the same bits everywhere. Waits.

        Raises:
            RuntimeError: it has not; names a process that differs from the first one.
        """
        if self.size == 1:
            return
        sums = self.exchange(functools.reduce(_add_sum, _flatten(tree), 0))
        for rank, checksum in enumerate(sums):
            if checksum != sums[0]:
                raise RuntimeError(f"{what} on rank {rank}, {self.hosts[rank]}, are not those of rank 0: the processes have drifted apart")

    # What each process does with its share.

    def own(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows of this process of those of the whole batch [B, …]; the size of the world divides B."""
        count = len(rows) // self.size
        return rows[self.rank * count : (self.rank + 1) * count]

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside, models know that they see a part of a batch; see `place`."""
        with sharing(self.rank, self.size):
            yield

    # The watch: which process does not go on.

    def mark(self, where: str) -> None:
        """This process has reached `where`; all pass the same marks. See `watched`."""
        if self._watch is not None:
            self._watch.mark(where)

    @contextmanager
    def watched(self, advice: str = "") -> Iterator[None]:
        """Inside, a process that passes no mark for longer than the timeout ends the run.

        advice: added to what is printed about a process that is lost.
        """
        if self._watch is None:
            yield
            return
        self._watch.advice = advice
        self._watch.watching(True)
        yield  # after an error the watch goes on: it finds out who was lost
        self._watch.watching(False)

    def failed(self, error: BaseException, text: str, code: int) -> int:
        """End all processes with the exit code `code`, which is returned, and one line: `text`, or that another process was lost."""
        self.lost(error)
        if self._watch is not None and not self.first:
            self._watch.failed(text, code)
            return code
        print(text, file=sys.stderr)
        if self._watch is not None:
            self._watch.leave(code, planned=False)
        return code

    def lost(self, error: BaseException) -> None:
        """After an error that may be of a collective: wait until the watch has found the process that was lost, which ends this one."""
        if self._watch is not None and isinstance(error, RuntimeError):
            self._watch.lost_another()

    def leave(self, code: int) -> int:
        """This process has done its part; returns `code`. The first one leaves before the others, which wait for it."""
        if self._watch is not None:
            self._watch.leave(code)
        return code

    def _watched(self, timeout: float) -> Watch:
        addresses = _first_addresses()
        local = bool(addresses) and all(address.startswith("127.") for address in addresses)
        door = Door(local) if self.first else None
        port, token = self.exchange([door.port, door.token] if door else None)[0]
        if door is None:
            lines = {0: enter(addresses if local else [*addresses, self.hosts[0]], port, token, self.rank)}
        else:
            lines = door.admit(self.size - 1)
        return Watch(self.rank, self.hosts, timeout, lines)

    def _all_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of each process: their number and the first ones in one collective, and where that is not all the rest in another."""
        first = self._all_rows(len(data).to_bytes(8, "little") + data[:SHORT], 8 + SHORT)
        lengths = [int.from_bytes(row[:8], "little") for row in first]
        rest = max(lengths) - SHORT
        others = self._all_rows(data[SHORT:], rest) if rest > 0 else [b""] * self.size
        return [(row[8:] + other)[:length] for row, other, length in zip(first, others, lengths, strict=True)]

    def _all_rows(self, data: bytes, length: int) -> list[bytes]:
        """The bytes of each process, with zeros up to `length`."""
        padded = mx.array(np.frombuffer(data.ljust(length, b"\0"), np.uint8))
        return [row.tobytes() for row in np.array(self.all(padded)).reshape(self.size, length)]


ALONE = World()


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return _backend(os.environ) is not None


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[World]:
    """The world of this process: that of its launcher, or ALONE. Inside, end with `World.leave` or `World.failed`.

    Args:
        timeout: seconds after which a run ends whose processes do not go on, or do not all start.

    Raises:
        ConnectionError: the backend does not start, or the processes do not reach each other.
    """
    backend = _backend(os.environ)
    if backend is None:
        yield ALONE
        return
    missing = f"error: not all processes of the backend {backend} started within {timeout:g} s (--collective-timeout)"
    try:
        with deadline(timeout, missing):
            world = World(mx.distributed.init(strict=True, backend=backend), timeout)
    except RuntimeError as error:
        raise ConnectionError(f"the backend {backend} does not start: {error}") from error
    try:
        yield world
    except KeyboardInterrupt as error:
        if world.size == 1:
            raise
        raise SystemExit(world.failed(error, "interrupted", 130)) from error
    except Exception as error:  # nothing that a command reports: a fault of the program
        world.lost(error)
        traceback.print_exc()
        world.failed(error, f"error: {type(error).__name__}: {error}", 1)
        raise SystemExit(1) from error


def _backend(environment: Mapping[str, str]) -> str | None:
    """MLX's backend for what a launcher left in the environment; None: there was no launcher, or it started one process."""
    if "MLX_WORLD_SIZE" in environment and "NCCL_HOST_IP" in environment:
        return "nccl" if environment["MLX_WORLD_SIZE"] != "1" else None
    if "MLX_JACCL_COORDINATOR" in environment:
        return "jaccl"
    if "MLX_HOSTFILE" in environment:
        return "ring" if len(_hostfile(environment)) > 1 else None
    sizes = [environment.get(name, "1") for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]  # Open MPI, MPICH
    return "mpi" if any(size != "1" for size in sizes) else None


def _hostfile(environment: Mapping[str, str]) -> list[list[str]]:
    """The addresses IP:PORT of each process of a ring."""
    with open(environment["MLX_HOSTFILE"], encoding="utf-8") as file:
        return cast(list[list[str]], parse_json(file.read() or "[]"))


def _first_addresses() -> list[str]:
    """Where the first process may be reached, as the launcher says."""
    environment = os.environ
    if "NCCL_HOST_IP" in environment:
        return [environment["NCCL_HOST_IP"]]
    if "MLX_JACCL_COORDINATOR" in environment:
        return [environment["MLX_JACCL_COORDINATOR"].rpartition(":")[0]]
    if "MLX_HOSTFILE" in environment:
        return [address.rpartition(":")[0] for address in _hostfile(environment)[0]]
    return []


def _flatten(tree: Any) -> list[mx.array]:
    return [array for _, array in cast(list[tuple[str, mx.array]], tree_flatten(tree))]


def _add_sum(before: int, array: mx.array) -> int:
    return zlib.crc32(np.array(array.flatten().view(mx.uint8)).data, before)
