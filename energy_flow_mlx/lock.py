"""Locks on folders that the kernel releases when the process ends, however it ends."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from .files import naming

LOCK = ".lock"  # names the process that writes into the folder


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process, and no other thread of this one, gets past `locked(folder)`.

    The folder is made; if it is left without another file in it, it goes again, with the parents that were made. Where the file
    system has no locks, a warning says so and nothing is locked.

    Raises:
        BlockingIOError: another has the lock; names its process, host and start.
        OSError: the folder cannot be made or written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _taken(folder / LOCK):
            yield
    finally:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


@contextmanager
def _taken(path: Path) -> Iterator[None]:
    while True:
        with path.open("a+", encoding="utf-8") as file:
            _lock(path, file)
            if not _is_at(path, file):
                continue  # its holder removed it after it was opened here
            holder = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
            try:
                with naming(path):
                    file.truncate(0)
                    os.write(file.fileno(), holder.encode())  # no buffer, which would be written once more when the file is closed
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _lock(path: Path, file: IO[str]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            print(f"warning: {path}: this file system has no locks ({error.strerror}): nothing keeps a second run out", file=sys.stderr)
            return
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise BlockingIOError(f"{path.parent} is in use by {holder}: wait for it or stop it, or choose another folder") from None


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
