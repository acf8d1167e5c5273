"""A dataset folder for one build: one process at a time, and the same settings until it is finished."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..lock import LOCK, locked
from ..strict_json import parse_json, to_json
from .records import DataError

PLAN = ".build.json"  # exists while the build is unfinished; holds the settings' hash and the teacher's fingerprint


@contextmanager
def claimed(folder: Path, plan: str, begun: Callable[[], bool]) -> Iterator[Callable[[str, str], None]]:
    """Lock the folder for one build, and remember the build's plan until its end.

    Args:
        folder: created if it does not exist.
        plan: hash of the build's settings and sources.
        begun: whether the build has written output. From then on a different plan is refused; if the build fails
            earlier, nothing is left of it.

    Yields:
        A function `note(name, value)` that stores a further value that must not change, such as the teacher's
        fingerprint.

    Raises:
        DataError: the folder holds other files or a build with another plan.
        BlockingIOError: another process is building it.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is no folder; name a new one", "in use")
    path = folder / PLAN
    with locked(folder):
        if not path.is_file() and any(each.name != LOCK for each in folder.iterdir()):
            raise DataError(f"{folder}: exists and is not empty; name a new folder", "in use")
        noted = _read(path)

        def note(name: str, value: str) -> None:
            if name in noted and noted[name] != value and begun():
                raise DataError(
                    f"{folder}: holds an unfinished build with other settings, sources or teacher; resume it with its original command, "
                    "remove the folder, or name another",
                    "in use",
                )
            if noted.get(name) != value:  # what is noted once shards exist is not written again, which a kill could cut off
                noted[name] = value
                path.write_text(to_json(noted, indent=None), encoding="utf-8")

        try:
            note("plan", plan)
            yield note
        except Exception:
            if not begun():
                path.unlink(missing_ok=True)
            raise
        path.unlink()


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(parse_json(path.read_bytes()))
    except (FileNotFoundError, ValueError):  # interrupted while the file was written, before anything was built
        return {}
