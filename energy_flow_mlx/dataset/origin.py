"""Sources of pairs: data files, dataset folders, the hub, and the built-in generator.

PATH              a data file, whose extension gives the format, or a dataset folder
hub:OWNER/NAME    a dataset of the hub (see `hub`)
builtin:COUNT     COUNT generated pairs
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checks import check_int, whole_number
from ..data.corpus import generate_pairs
from ..files import digest
from .folder import read_folder
from .formats import format_to_read, pack, read_file
from .formats.rows import Selection
from .hub import PREFIX, hub_files
from .records import DataError, Faults, Place, Placed, Record

_BUILTIN = "builtin:"


class Origin:
    """A source of records, which can be read more than once.

    Args:
        spec: one of the forms above.
        seed: of generated pairs; other sources do not use it.
        selection: columns and labels, if the format has them.

    Raises:
        FileNotFoundError, DataError, ValueError: the source does not exist, or `spec` is malformed.
    """

    def __init__(self, spec: str, seed: int = 0, selection: Selection | None = None) -> None:
        self.spec, self._seed, self._selection = spec, seed, selection
        self._count = _generated(spec) if spec.startswith(_BUILTIN) else None
        self.paths = [] if self._count else hub_files(spec) if spec.startswith(PREFIX) else [_existing(spec)]

    def records(self, faults: Faults) -> Iterator[Placed]:
        """The validated records of all files, in order. Raises as `read_file`."""
        if self._count:
            for number, pair in enumerate(generate_pairs(self._count, self._seed), 1):
                yield Place(Path(self.spec), "pair", number), Record(pair.input, pair.target)
        for path in self.paths:
            if path.is_dir():
                yield from read_folder(path)
            else:
                yield from read_file(path, faults, self._selection)

    def info(self) -> dict[str, Any]:
        """The `generation_info` of a pack; for other sources their name."""
        if len(self.paths) == 1 and self.paths[0].suffix in (".pt", ".safetensors"):
            return pack.load(self.paths[0]).info
        return {"source": self.spec}

    def contents(self) -> list[str]:
        """Identifies the contents: SHA-256 and extension of each file, or count and seed of generated pairs."""
        if self._count:
            return [f"{self.spec} seed {self._seed}"]
        return [digest(path / "dataset.json") if path.is_dir() else digest(path) + path.suffix for path in self.paths]


def _generated(spec: str) -> int:
    count = whole_number(spec.removeprefix(_BUILTIN))
    if count is None:
        raise ValueError(f"generated pairs must be written builtin:COUNT, got {spec!r}")
    return check_int("COUNT of builtin:COUNT", count, 1)


def _existing(spec: str) -> Path:
    path = Path(spec)
    if path.is_dir() and not (path / "dataset.json").is_file():
        raise DataError(
            f"{path}: is a folder without dataset.json; name a dataset folder, or the files in this one", "format"
        )
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file; sources are files, dataset folders, hub:OWNER/NAME and builtin:COUNT"
        )
    if path.is_file():
        format_to_read(path)  # refused before anything is read
    return path
