"""The progress bar of every command."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

SECONDS = 30  # between lines where there is no terminal


class Bar(tqdm):
    """A bar where standard error is a terminal; elsewhere a line now and then: in a file, redrawn bars would be one long line.

    Its times are those of a clock that does not jump: by tqdm's own the bar would stand still after the system's clock was set back.

    Args:
        records: what to iterate over, if anything.
        quiet: nothing is shown.
        options: tqdm's.
    """

    monitor_interval = 0  # a thread that compares with the clock that jumps

    def __init__(self, records: Any = None, *, quiet: bool, **options: Any) -> None:
        self._lines = not in_terminal(options.get("file"))
        if self._lines:
            options |= {"mininterval": SECONDS, "miniters": 1, "bar_format": "{desc}: {n_fmt}/{total_fmt}{unit} [{elapsed}]"}
        super().__init__(records, disable=quiet, dynamic_ncols=True, smoothing=0.1, **options)
        if not self.disable:
            self._time = time.monotonic
            self.start_t = self.last_print_t = self._time()

    def close(self) -> None:
        """As tqdm's, without its empty line."""
        if self._lines and not self.disable:
            self.display()
            self.disable = True
        super().close()

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """As tqdm's; a line each where there is no terminal."""
        if in_terminal(file):
            return tqdm.status_printer(file)

        def line(text: str) -> None:
            file.write(f"{text}\n")
            file.flush()

        return line


def in_terminal(file: Any = None) -> bool:
    """Whether `file`, or standard error, is a terminal that has a width: some of containers have none, and show no bar."""
    file = file or sys.stderr
    if not file.isatty():
        return False
    try:
        return os.get_terminal_size(file.fileno()).columns > 0
    except OSError:  # a stream without a descriptor
        return True


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config
