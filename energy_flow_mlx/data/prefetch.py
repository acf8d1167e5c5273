"""Reading ahead: the next step's batches are made in a thread while this step runs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calls `make(step)` one step ahead. What is made depends on the step alone, so it is what a direct call gives.

    Use it in a `with` statement, whose end waits for the thread.

    Args:
        make: a function of the step; it runs in a thread, one call at a time.
        last: the step after which there is nothing to make.
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
        """What `make(step)` gives; its errors are raised here. Steps are asked for in any order, quickest in rising."""
        here = (
            self._next[1] if self._next is not None and self._next[0] == step else self._thread.submit(self._make, step)
        )
        made = here.result()
        self._next = (step + 1, self._thread.submit(self._make, step + 1)) if step < self._last else None
        return made
