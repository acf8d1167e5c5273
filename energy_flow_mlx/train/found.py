"""Which run `--resume latest` and `--resume best` mean."""

import math
from collections.abc import Callable
from pathlib import Path

from ..config import EnergyConfig
from ..files import resolve
from .checkpoint import TrainerState, read_state

RUNS = Path("runs")


def _saved_at(run: Path, state: TrainerState) -> float:
    return resolve(run, "trainer.json").stat().st_mtime


def _part(run: Path) -> str:
    path = resolve(run, "config.json")
    return EnergyConfig.from_json(path).part if path.is_file() else "all"


def _best_cosine(run: Path, state: TrainerState) -> float:
    return state.best_validation_score if _part(run) == "all" else -math.inf  # a decoder's and a corrector's score are of another kind


NAMED: dict[str, Callable[[Path, TrainerState], float]] = {"latest": _saved_at, "best": _best_cosine}


def found_run(name: str, runs: Path = RUNS) -> tuple[Path, str]:
    """The run in the folder `runs` that `name` means, and what to tell of it.

    Args:
        name: latest: the one whose checkpoint is the newest; best: the one with the highest validation cosine so far.

    Raises:
        FileNotFoundError: there is none; for best, none that was validated.
        CheckpointError: the trainer's state of one cannot be read; names the file.
    """
    folders = sorted(path for path in runs.glob("*") if resolve(path, "trainer.json").is_file())
    ranked = [(NAMED[name](path, state), path, state) for path, state in ((path, read_state(path)) for path in folders)]
    ranked = [each for each in ranked if each[0] > -math.inf]
    if not ranked:
        there = "no run that was validated" if folders else "no run"
        raise FileNotFoundError(f"--resume {name}: there is {there} in {runs}/; accepted is the folder of a run, ./{name} for one of that name")
    _, run, state = max(ranked)
    told = f"--resume {name}: {run}, step {state.step}"
    if state.best_step:
        watched, score = state.best(_part(run))
        told += f", the best validation {watched} {score:.4f} at step {state.best_step}"
    return run, told
