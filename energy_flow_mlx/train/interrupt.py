"""Ctrl-C, SIGTERM and SIGHUP: the first one saves the run, the second one ends it at once."""

import contextlib
import os
import signal
import threading
from types import FrameType

from ..cli import HANGUP

STDERR = 2
_SAID = b"\nstopping: this step is finished and saved first; once more ends at once, without saving\n"


class StopRequest:
    """Inside, the first signal sets `requested`, which is read between steps; another one raises KeyboardInterrupt.

    A thread other than the main one gets no signals, and SIGHUP stays ignored where it is, as under nohup.

    Args:
        tells: says at once what the first signal does; of several processes, all of which a Ctrl-C reaches, one is enough.
    """

    def __init__(self, tells: bool = True) -> None:
        self.requested = False
        self._tells = tells

    def __enter__(self) -> "StopRequest":
        caught = [signal.SIGINT, signal.SIGTERM]
        if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
            caught.append(HANGUP)
        if threading.current_thread() is not threading.main_thread():
            caught = []
        self._before = {number: signal.signal(number, self._take) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if not self._tells:
            return
        with contextlib.suppress(OSError):
            os.write(STDERR, _SAID)  # at once; sys.stderr may be in the middle of a line and refuse to be entered again
