"""One configuration trained with several seeds, one run after another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checks import whole_number
from ..comparison import compare
from ..config import ConfigError, EnergyConfig
from ..files import resolve
from ..results import FILE, Results
from .checkpoint import read_state
from .trainer import Trainer


def parsed_seeds(text: str) -> list[int]:
    """The seeds in a text such as "0,1,2".

    Raises:
        ConfigError: it holds something else, or a seed twice.
    """
    words = [word.strip() for word in text.split(",")]
    seeds = [seed for word in words if (seed := whole_number(word)) is not None]
    if len(seeds) != len(words) or len(set(seeds)) != len(seeds):
        raise ConfigError(f"--seeds {text!r} is not accepted: it takes different whole numbers with commas between them, such as 0,1,2")
    return seeds


def train_seeds(config: EnergyConfig, seeds: Sequence[int], base: Path, *, quiet: bool = False, **options: Any) -> int:
    """Train `config` with each seed in a folder of its own, `base`-seed0 …, and print what they reached.

    A run that is complete is not repeated, and one that was stopped goes on, so that the same command finishes the whole.

    Args:
        quiet: nothing but tables is printed.
        options: others of `Trainer`.

    Returns:
        The exit code: 0, or 130 where a run was stopped, with which the rest is left undone.

    Raises:
        ConfigError: a folder holds a run of another configuration. Or as `Trainer`.
    """
    folders = [base.with_name(f"{base.name}-seed{seed}") for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        begun = resolve(folder, "trainer.json").is_file()
        trainer = Trainer(config.replace(seed=seed), out=folder, resume=begun, quiet=quiet, **options)
        if begun and _complete(folder, config):
            if not quiet:
                print(f"{folder} is complete", flush=True)
            continue
        trainer.fit()
        if trainer.exit_code:
            return trainer.exit_code
    print(f"\n{compare(*folders)}")
    return 0


def _complete(folder: Path, config: EnergyConfig) -> bool:
    state = read_state(folder)
    return state.finished(config) and (folder / FILE).is_file() and Results.load(folder).steps == state.step
