"""A folder that one build fills: no other build, and no other settings."""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .records import DataError

PLAN = ".build.json"  # there while the folder is not finished


@contextmanager
def claimed(folder: Path, plan: str, begun: Callable[[], bool]) -> Iterator[Callable[[str, str], None]]:
    """Claim the folder for one build. Gives a function that notes a value of the plan.

    Once the build has `begun`, another value is refused. A build that fails before leaves nothing.

    Raises:
        DataError: the folder holds something else, another build, or another process is building it.
    """
    if folder.exists() and not (folder / PLAN).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is there and not empty; name a new folder", "in use")
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
                    f"{folder}: holds an unfinished build with other settings, sources or teacher; finish that with its own command, "
                    "remove the folder, or name another",
                    "in use",
                )
            noted[name] = value
            file.seek(0)
            file.truncate()
            json.dump(noted, file)
            file.flush()

        note("plan", plan)
        try:
            yield note
        except Exception:
            if not begun():
                (folder / PLAN).unlink()
                with suppress(OSError):  # not empty: something else was put there
                    folder.rmdir()
            raise


def _parsed(text: str) -> dict[str, str]:
    try:
        return dict(json.loads(text)) if text else {}
    except ValueError:  # a kill while it was written: nothing was built yet
        return {}
