"""results.json of a run: its scores on every split, and what made them."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from .config import EnergyConfig
from .files import write_aside
from .program import call_of
from .scores import Evaluation, Rows, Scores, html_rows, table
from .strict_json import read_json, write_json

FILE = "results.json"
_FORMAT = "energy-flow results 1"


@dataclass(frozen=True)
class Results:
    """What a trained model reached, and what made it.

    data: name of the data set. pairs: how many, by split. splits: rows by split, each row a name with its scores. steps: of training.
    seconds: of "training", of the process that ended it, and of "evaluation". resumed_at: the step at which that process began.
    made: version and commit of this package, command, device and the libraries' versions.
    """

    data: str
    pairs: dict[str, int]
    splits: dict[str, Rows]
    steps: int
    seconds: dict[str, float] = field(default_factory=dict)
    resumed_at: int = 0
    made: dict[str, str] = field(default_factory=dict)

    @property
    def evaluation(self) -> Evaluation:
        """The model's scores on the test split."""
        return next(scores for scores in self.splits["test"].values() if isinstance(scores, Evaluation))

    def title(self) -> str:
        """What the rows of the test split are of."""
        return f"{self.pairs['test']} held-out test pairs of {self.data}"

    def __str__(self) -> str:
        return table(self.splits["test"], self.title())

    def _repr_html_(self) -> str:
        return html_rows(self.splits["test"])

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
        splits = {split: {name: asdict(scores) for name, scores in rows.items()} for split, rows in self.splits.items()}
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"format": _FORMAT, **values, "splits": splits}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write results.json into a folder, aside and renamed."""
        values = self.to_dict()
        write_aside(Path(folder) / FILE, lambda aside: write_json(aside, values))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Results":
        """The results in the folder of a run.

        Raises:
            FileNotFoundError: there are none yet; says what writes them.
            ValueError: the file holds something else.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; a training writes it at its end, and {call_of('evaluate')} {folder}")
        values = read_json(path)
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            raise ValueError(f"{path} does not hold the results of a run ({_FORMAT!r})")
        try:
            values["splits"] = {
                split: {name: (Evaluation if "arrived" in row else Scores)(**row) for name, row in rows.items()}
                for split, rows in values["splits"].items()
            }
            found = cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not what this version writes: {error!r}") from error
        if faults := list(_faults(found)):
            raise ValueError(f"{path} is not what this version writes: {'; '.join(faults)}")
        return found


_KINDS: dict[str, type] = {"data": str, "pairs": dict, "steps": int, "seconds": dict, "resumed_at": int, "made": dict}


def _faults(found: Results) -> Iterator[str]:
    """What readers of results take for granted and these do not have."""
    yield from (f"{name} is {getattr(found, name)!r:.80}" for name, kind in _KINDS.items() if not isinstance(getattr(found, name), kind))
    if not any(isinstance(scores, Evaluation) for scores in found.splits.get("test", {}).values()):
        yield "the split test has no row with what flows did"
    if isinstance(found.pairs, dict) and not isinstance(found.pairs.get("test"), int):
        yield f"pairs of the split test: {found.pairs.get('test')!r:.80}"
    for split, rows in found.splits.items():
        for name, scores in rows.items():
            wrong = [key for key, value in asdict(scores).items() if isinstance(value, bool) or not isinstance(value, int | float)]
            yield from (f"{split}, {name}: {key} is {getattr(scores, key)!r:.80}" for key in wrong)


def made_by(config: EnergyConfig) -> dict[str, str]:
    """What a result owes itself to: versions, commit, command, device."""
    info = mx.device_info()
    found = {
        "energy_flow_mlx": _version("energy-flow-mlx"),
        "commit": _commit(),
        "command": config.command(),
        "device": f"{mx.default_device()} ({info.get('device_name', platform.machine())})",
        "mlx": _version("mlx"),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return {name: value for name, value in found.items() if value}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a folder on the path, not installed
        return ""


def _commit() -> str:
    """The commit of the clone that this package runs from, with a + after it where files were changed; "" where it is no clone."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{head}+" if head and changed else head
