"""What a command notes beside its result: the loggers of the package on standard error, above a progress bar."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from .bar import in_terminal

LEVELS = ("debug", "info", "warning", "error")


class _Notes(logging.Handler):
    """A line each; one of a warning or an error says so. A bar in a terminal moves down."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        text = f"{level}{self.format(record)}"
        if in_terminal():
            tqdm.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def shown(level: str) -> Iterator[None]:
    """Inside, messages of `energy_flow_mlx` loggers from `level`, one of LEVELS, go to standard error."""
    logger, notes = logging.getLogger(__package__), _Notes()
    before = logger.level
    logger.addHandler(notes)
    logger.setLevel(level.upper())
    try:
        yield
    finally:
        logger.removeHandler(notes)
        logger.setLevel(before)
