"""Atomic writes: files are written under a temporary name and renamed, so that a reader never sees a partial file.

A set of files that belong together (weights, optimiser and trainer state of one step) is replaced in three stages:

    write all into  FOLDER/.incoming/      if it fails, .incoming is removed; after a kill the next write removes it; the old set is valid
    rename that to  FOLDER/.complete/      the commit: one atomic rename
    move each file  into FOLDER/           if interrupted, `resolve` finds the new set in both places
"""

import errno
import glob
import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

INCOMING, COMPLETE = ".incoming", ".complete"


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, an error of the system that names no file names `path`: a write that finds no room does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_aside(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Write a file atomically: call `write` with a temporary path in the same folder, flush the file and rename it.

    The temporary path has the extension of `path`, because some writers choose their format by it.

    Raises:
        OSError: names the file; nothing is left of it, and the old one is as it was.
    """
    path = Path(path)
    if path.is_dir():  # also the empty path, which is the folder of the process
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _sweep(path)
    aside = path.with_name(f".{path.stem}.{platform.node()}-{os.getpid()}.new{path.suffix}")
    try:
        with _written(path, aside):
            write(aside)
            _flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what processes of this machine that were killed left of their writes of the file `path`."""
    before, after = f".{path.stem}.{platform.node()}-", f".new{path.suffix}"
    for left in path.parent.glob(f"{glob.escape(before)}*{glob.escape(after)}"):
        process = left.name.removeprefix(before).removesuffix(after)
        if process.isdecimal() and not _runs(int(process)):
            left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # someone else's
        pass
    return True


def write_folder(folder: str | os.PathLike[str], writers: Mapping[str, Callable[[Path], Any]]) -> None:
    """Replace a set of files atomically: after an interruption `resolve` finds either all old or all new ones.

    Other files in the folder stay. Concurrent writers are not supported.

    Args:
        folder: created if it does not exist.
        writers: file name -> function that writes the file at the path it is given.

    Raises:
        OSError: names the file. The old files are as they were and nothing is left of the new ones; or, if moving them failed, the
            new ones are what `resolve` finds.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    incoming = folder / INCOMING
    if incoming.exists():
        shutil.rmtree(incoming)
    try:
        incoming.mkdir()
        for name, write in writers.items():
            with _written(folder / name, incoming / name):
                write(incoming / name)
                _flush(incoming / name)
        _flush(incoming)
        os.rename(incoming, folder / COMPLETE)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)  # a full disk gets its room back
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
def _written(path: Path, aside: Path) -> Iterator[None]:
    """Inside, whatever fails in writing `aside` becomes an OSError that names `path` and the reason. Libraries that write natively raise
    errors of their own, over that of the system or with its words."""
    try:
        with naming(path):
            yield
    except (OSError, RuntimeError, SafetensorError) as error:
        cause: BaseException | None = error
        while cause is not None and not (isinstance(cause, OSError) and cause.errno):
            cause = cause.__context__
        if cause is None:
            raise OSError(f"{path}: could not be written: {error}") from error
        if cause is error and cause.filename not in (str(aside), aside):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    except OSError as error:
        # Some network disks have no flush for folders. They write a rename at once.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
