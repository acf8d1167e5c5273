"""Several processes of a run as threads of this one: what they exchange goes through memory."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from energy_flow_mlx.distributed import World

SOON = 20.0  # seconds, after which a process that others wait for has failed


class Meeting:
    """Where the threads leave what they exchange."""

    def __init__(self, size: int) -> None:
        self.size, self.table = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=SOON)


class Thread(World):
    """The world of one thread; it has no collectives on arrays."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__()
        self.rank, self.size, self._meeting = rank, meeting.size, meeting
        self.hosts = ["here"] * meeting.size

    def exchange(self, value: Any) -> list[Any]:
        if self.size == 1:
            return [value]
        self._meeting.barrier.wait()
        self._meeting.table[self.rank] = value
        self._meeting.barrier.wait()
        return list(self._meeting.table)

    gather = exchange


def together(call, size):
    """What `call(world)` gives in each of `size` threads.

    Raises:
        BaseException: that of the first thread that failed.
    """
    meeting = Meeting(size)

    def run(rank):
        try:
            return call(Thread(rank, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [future.result() for future in futures]
