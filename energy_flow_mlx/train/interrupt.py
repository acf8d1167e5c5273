"""Ctrl-C and SIGTERM: the first one saves the run, the second one ends it at once."""

import signal
from types import FrameType


class StopRequest:
    """Inside, the first Ctrl-C or SIGTERM sets `requested`, which is read between steps; another one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._before = {caught: signal.signal(caught, self._take) for caught in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for caught, handler in self._before.items():
            signal.signal(caught, handler)

    def _take(self, caught: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
