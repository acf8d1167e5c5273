"""The progress bar of every command."""

import time
from typing import Any

from tqdm import tqdm


class Bar(tqdm):
    """A bar where standard error is a terminal, and nothing elsewhere: in a file its redrawn lines would be one long one.

    Its times are those of a clock that does not jump: by tqdm's own the bar would stand still after the system's clock was set back.
    """

    monitor_interval = 0  # a thread that compares with the clock that jumps

    def __init__(self, records: Any = None, *, quiet: bool, **options: Any) -> None:
        super().__init__(records, disable=quiet or None, dynamic_ncols=True, smoothing=0.1, **options)
        if not self.disable:
            self._time = time.monotonic
            self.start_t = self.last_print_t = self._time()
