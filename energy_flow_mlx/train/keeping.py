"""Checkpoints beside the last one: best/ with the model of the best validation, steps/ with those of the last few saves."""

import contextlib
import os
import shutil
from functools import partial
from pathlib import Path

from ..config import EnergyConfig
from ..files import resolve, write_folder
from ..models.energy_flow import EnergyFlow
from . import checkpoint

BEST, STEPS = "best", "steps"


def save_best(run: Path, model: EnergyFlow, config: EnergyConfig) -> None:
    """Replace the model in best/ of the run folder. The optimiser's state, which is twice its size, is not kept.

    Raises:
        OSError: a file was not written, and is named; the old model stays.
    """
    write_folder(run / BEST, {**model.writers(), "config.json": config.to_json})


def copy_best(run: Path, other: Path) -> None:
    """Give the model in best/ of a run folder to another one that has none. Raises as `save_best`."""
    if (run / BEST).is_dir() and not (other / BEST).exists():
        names = {path.name for path in (run / BEST).rglob("*") if path.is_file()}
        write_folder(other / BEST, {name: partial(shutil.copyfile, resolve(run / BEST, name)) for name in names})


def keep(run: Path, step: int, number: int) -> None:
    """Keep the checkpoint in the run folder, which is of `step`, in steps/ too, and of those there the last `number`; 0: do nothing.

    Its files are linked where the file system has links, for a checkpoint is replaced and never written over.

    Raises:
        OSError: a file was not written, and is named; or what is no longer kept was not removed.
    """
    if not number:
        return
    folder = run / STEPS / f"{step:07}"
    if folder.exists():  # half written by a run that was killed, or the same: renaming does nothing between links to one file
        shutil.rmtree(folder)
    write_folder(folder, {name: partial(_take, path) for name, path in checkpoint.files(run).items()})
    for old in list(_numbered(run).values())[:-number]:
        shutil.rmtree(old)


def kept(run: Path) -> dict[int, Path]:
    """The folders in steps/ by their step, in its order; those whose writing was not finished are left out."""
    return {step: folder for step, folder in _numbered(run).items() if resolve(folder, "trainer.json").is_file()}


def at_step(run: Path, step: int) -> Path:
    """The folder in steps/ that holds the checkpoint of `step`.

    Raises:
        FileNotFoundError: there is none; names those there are.
    """
    folders = kept(run)
    if step not in folders:
        there = f"there are {', '.join(map(str, folders))}" if folders else "there is none; train --keep N keeps the last N"
        raise FileNotFoundError(f"{run / STEPS} holds no checkpoint of step {step}: {there}")
    return folders[step]


def _numbered(run: Path) -> dict[int, Path]:
    found = {int(path.name): path for path in (run / STEPS).glob("*") if path.name.isascii() and path.name.isdecimal()}
    return dict(sorted(found.items()))


def _take(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # no links here: the copy works, or says why not
        os.link(source, target)
        return
    shutil.copyfile(source, target)
