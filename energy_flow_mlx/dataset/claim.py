"""Locking a dataset folder for one build: one process at a time, and the same settings until it is finished."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..strict_json import parse_json, to_json
from .records import DataError

PLAN = ".build.json"  # exists while the build is unfinished; holds the settings' hash and the teacher's fingerprint


@contextmanager
def claimed(folder: Path, plan: str, begun: Callable[[], bool]) -> Iterator[Callable[[str, str], None]]:
    """Lock the folder for one build.

    Args:
        folder: created if it does not exist.
        plan: hash of the build's settings and sources.
        begun: whether the build has written output. From then on a different plan is refused; if the build fails
            earlier, the folder is removed.

    Yields:
        A function `note(name, value)` that stores a further value that must not change, such as the teacher's
        fingerprint.

    Raises:
        DataError: the folder holds other files or a build with another plan, or another process is building it.
    """
    if folder.exists() and not (folder / PLAN).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; name a new folder", "in use")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PLAN).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when the process ends
        except OSError:
            raise DataError(f"{folder}: another process is building it", "in use") from None
        file.seek(0)
        noted = _parsed(file.read())

        def note(name: str, value: str) -> None:
            if noted.get(name, value) != value and begun():
                raise DataError(
                    f"{folder}: holds an unfinished build with other settings, sources or teacher; resume it with its original command, "
                    "remove the folder, or name another",
                    "in use",
                )
            noted[name] = value
            file.seek(0)
            file.truncate()
            file.write(to_json(noted, indent=None))
            file.flush()

        note("plan", plan)
        try:
            yield note
        except Exception:
            if not begun():
                (folder / PLAN).unlink()
                with suppress(OSError):  # not empty: another program wrote there
                    folder.rmdir()
            raise


def _parsed(text: str) -> dict[str, str]:
    try:
        return dict(parse_json(text)) if text else {}
    except ValueError:  # interrupted while the file was written, before anything was built
        return {}
