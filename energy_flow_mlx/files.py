"""Files written aside and renamed, so that a reader finds the old ones or the whole new ones, never a part.

A folder of files that belong together (weights, optimiser and trainer state of one step) is replaced in three moves:

    write all into  FOLDER/.incoming/      a kill here leaves the old set; the next write clears the rest away
    rename that to  FOLDER/.complete/      the commit: one atomic rename
    move each file  into FOLDER/           a kill here leaves a mix, which `resolve` reads as the new set
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

INCOMING, COMPLETE = ".incoming", ".complete"


def write_aside(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `path`, flush what it wrote to disk, and rename it into place.

    The path aside keeps the ending of `path`, because some writers choose their format by it.
    """
    path = Path(path)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.new{path.suffix}")
    try:
        write(aside)
        _flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_folder(folder: str | os.PathLike[str], writers: Mapping[str, Callable[[Path], Any]]) -> None:
    """Replace the files named in `writers` together: a kill at any moment leaves all old or all new ones to `resolve`.

    Other files in the folder stay. A folder has one writer at a time.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settle(folder)
    incoming = folder / INCOMING
    if incoming.exists():
        shutil.rmtree(incoming)
    incoming.mkdir()
    for name, write in writers.items():
        write(incoming / name)
        _flush(incoming / name)
    _flush(incoming)
    os.rename(incoming, folder / COMPLETE)
    _flush(folder)
    settle(folder)


def settle(folder: str | os.PathLike[str]) -> None:
    """Finish a committed write that was cut off: move the files of `.complete` into the folder."""
    folder = Path(folder)
    complete = folder / COMPLETE
    if not complete.is_dir():
        return
    for path in sorted(complete.iterdir()):
        os.replace(path, folder / path.name)
    _flush(folder)
    complete.rmdir()


def resolve(folder: str | os.PathLike[str], name: str) -> Path:
    """Where the current version of the file `name` lies, whether or not the last write was settled. Changes nothing."""
    committed = Path(folder) / COMPLETE / name
    return committed if committed.is_file() else Path(folder) / name


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
