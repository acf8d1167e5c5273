"""Atomic writes: files are written under a temporary name and renamed, so that a reader never sees a partial file.

A set of files that belong together (weights, optimiser and trainer state of one step) is replaced in three stages:

    write all into  FOLDER/.incoming/      if it fails, .incoming is removed; after a kill the next write removes it; the old set is valid
    rename that to  FOLDER/.complete/      the commit: one atomic rename
    move each file  into FOLDER/           if interrupted, `resolve` finds the new set in both places
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

INCOMING, COMPLETE = ".incoming", ".complete"


def write_aside(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Write a file atomically: call `write` with a temporary path in the same folder, flush the file and rename it.

    The temporary path has the extension of `path`, because some writers choose their format by it.

    Raises:
        OSError: it could not be written; names `path` and the reason. The old file, if there is one, stays.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
    try:
        with named(path):
            write(aside)
            _flush(aside)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_folder(folder: str | os.PathLike[str], writers: Mapping[str, Callable[[Path], Any]]) -> None:
    """Replace a set of files atomically: after an interruption `resolve` finds either all old or all new ones.

    Other files in the folder stay. Concurrent writers are not supported.

    Args:
        folder: created if it does not exist.
        writers: file name -> function that writes the file at the path it is given.

    Raises:
        OSError: a file could not be written; names it and the reason. The old set stays.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    incoming = folder / INCOMING
    if incoming.exists():
        shutil.rmtree(incoming)
    incoming.mkdir()
    try:
        for name, write in writers.items():
            with named(folder / name):
                write(incoming / name)
                _flush(incoming / name)
        _flush(incoming)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)  # a disk that was full is so no longer
        raise
    os.rename(incoming, folder / COMPLETE)
    _flush(folder)
    settle(folder)


def settle(folder: str | os.PathLike[str]) -> None:
    """Finish a committed write that was interrupted: move the files of `.complete` into the folder."""
    folder = Path(folder)
    complete = folder / COMPLETE
    if not complete.is_dir():
        return
    for path in sorted(complete.iterdir()):
        os.replace(path, folder / path.name)
    _flush(folder)
    complete.rmdir()


def resolve(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of the current version of the file `name`, also after an interrupted write. Changes nothing."""
    committed = Path(folder) / COMPLETE / name
    return committed if committed.is_file() else Path(folder) / name


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, whatever fails in writing becomes an OSError that names `path` and the reason. Python's own writes name no file, and
    libraries that write natively raise errors of their own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__context__
        if cause is None:
            raise OSError(f"{path}: could not be written: {error}") from error
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network disks have no flush for folders. They write a rename at once.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
