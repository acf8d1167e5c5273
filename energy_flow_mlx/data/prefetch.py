"""Prefetching: a background thread prepares the next step's batches while the current step runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calls `make(step)` one step ahead, in a background thread.

    Use it as a context manager; leaving it waits for the thread.

    Args:
        make: a pure function of the step, so that prefetching does not change its result. Calls do not overlap.
        last: the last step.
    """

    def __init__(self, make: Callable[[int], T], last: int) -> None:
        self._make, self._last = make, last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[T]] | None = None

    def __enter__(self) -> "Prefetch[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __call__(self, step: int) -> T:
        """The result of `make(step)`, or its error. Steps may have any order, but only `step + 1` is prefetched."""
        current = (
            self._next[1] if self._next is not None and self._next[0] == step else self._thread.submit(self._make, step)
        )
        result = current.result()
        self._next = (step + 1, self._thread.submit(self._make, step + 1)) if step < self._last else None
        return result
