"""Training as a call: what the command line and a notebook have in common."""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config import ConfigError, EnergyConfig
from ..distributed import ALONE, World
from ..files import INCOMING
from ..lock import LOCK
from ..ops.failures import kernel_errors
from ..runs import Run
from . import checkpoint, memory
from .callbacks import Callback
from .dry_run import dry_run
from .interrupt import StopRequest
from .reporters import require
from .run import train

logger = logging.getLogger(__name__)

# What a resumed run may change: how long it goes on, how often it looks, what it writes, and where its data and teacher now lie.
RESUMABLE = (
    "training_steps", "validation_interval", "early_stopping", "checkpoint_interval", "keep_checkpoints", "log_interval",
    "report_to", "data", "text_corrector_teacher",
)  # fmt: skip


class Trainer:
    """One run. It may be fitted in any thread.

    Args:
        config: what is trained, and how.
        data: name, folder or file of the data set; None: that of `config`.
        callbacks: called in their order.
        out: folder of the run, new or empty; None: runs/<data>-seed<seed>, or the first of -2, -3, … after it that is free.
        resume: `out` holds a run, which goes on.
        quiet: nothing but the final table is printed.
        profile: folder for a trace of a few steps.
        mlp_baseline: afterwards train an MLP of the model's size, for the final table.
        ablation: afterwards train the model with its flow left out, for the final table.
        world: processes that train together, of which this is the first; the others call `run.follow`.
        shard_optimiser: the processes divide the moments of AdamW among them, which takes several.

    Attributes:
        exit_code: of the last `fit`: 0, or 130 where it was stopped.

    Raises:
        ConfigError: the run does not fit into memory or address space, a package that `report_to` needs is missing, or `config` is not that
            of the run to resume.
        FileExistsError: `out` is not empty.
        FileNotFoundError: there is no run in `out` to resume.
    """

    def __init__(
        self,
        config: EnergyConfig,
        data: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        out: str | os.PathLike[str] | None = None,
        resume: bool = False,
        quiet: bool = False,
        profile: str | os.PathLike[str] | None = None,
        mlp_baseline: bool = False,
        ablation: bool = False,
        world: World = ALONE,
        shard_optimiser: bool = False,
    ) -> None:
        if data is not None:
            config = config.replace(data=os.fspath(data))
        if resume and out is None:
            raise ConfigError("resume=True came without out, the folder of the run to resume")
        self.folder = Path(out) if out is not None else new_folder(Path("runs") / f"{Path(config.data).stem}-seed{config.seed}")
        memory.share(config, world.size)  # or it is refused
        if shard_optimiser and world.size == 1:
            raise ConfigError("shard_optimiser=True is not accepted: several processes divide the moments among them, and this one is alone")
        if profile is not None and world.size > 1:
            raise ConfigError(f"profile={os.fspath(profile)!r} is not accepted: a trace is of one process, {world.size} came")
        if config.part == "corrector" and world.size > 1:
            raise ConfigError(f"part='corrector' is not accepted with mlx.launch: its hypotheses are drawn by one process, {world.size} came")
        require(config)
        if resume:
            config = _resumed(self.folder, config)
        else:
            config = memory.within_budget(config, world.size)
            _refuse_used(self.folder)
        memory.check_room(memory.share(config, world.size))
        self.config = config
        self.exit_code = 0
        self._callbacks, self._resume, self._stop, self._world = callbacks, resume, StopRequest(), world
        self._shard_optimiser = shard_optimiser
        self._quiet, self._profile, self._mlp_baseline, self._ablation = quiet, profile, mlp_baseline, ablation

    def fit(self) -> Run:
        """Train until `config.training_steps` or early stopping, or until an interrupt or `stop()`, which save the run first; calling it again goes on.

        Raises:
            NonFiniteLoss: the folder holds the last checkpoint before it.
            KernelError: a kernel fails on this machine.
            OSError: the folder is in use, or something could not be read or written.
        """
        with kernel_errors():
            self.exit_code = train(
                self.config,
                self.folder,
                resume=self._resume,
                quiet=self._quiet,
                profile=self._profile,
                mlp_baseline=self._mlp_baseline,
                ablation=self._ablation,
                callbacks=self._callbacks,
                stop=self._stop,
                world=self._world,
                shard_optimiser=self._shard_optimiser,
            )
        self._resume, self._stop = True, StopRequest()
        run = Run.load(self.folder)
        self.config = run.config
        for callback in self._callbacks:
            callback.on_end(run)
        return run

    def dry_run(self) -> str:
        """What `fit` would train, how long and in how much memory, and what it would write, as text. Nothing is written.

        Raises:
            NonFiniteLoss: a step that was tried has a loss that is not finite.
            KernelError: a kernel fails on this machine.
        """
        with kernel_errors():
            return dry_run(self.config, self.folder, resume=self._resume)

    def stop(self) -> None:
        """From another thread or a callback: `fit` finishes its step, saves and returns."""
        self._stop.requested = True


def new_folder(name: Path) -> Path:
    """The folder `name`, or where that is used already the first of `name`-2, `name`-3, … that is not; then says so."""
    names = itertools.chain([name], (name.with_name(f"{name.name}-{number}") for number in itertools.count(2)))
    folder = next(filter(_is_free, names))
    if folder != name:
        logger.warning("%s is not empty: this run goes to %s (--resume %s goes on with the other one)", name, folder, name)
    return folder


def _is_free(folder: Path) -> bool:
    """Whether a run may begin there: there is nothing, or what a run left that ended before its first checkpoint."""
    left = (INCOMING, LOCK, checkpoint.HYPOTHESES)
    return not folder.exists() or (folder.is_dir() and all(path.name in left for path in folder.iterdir()))


def _refuse_used(run: Path) -> None:
    if not _is_free(run):
        raise FileExistsError(f"{run} is not empty: go on with it (--resume {run}) or choose another folder (--out)")


def _resumed(folder: Path, config: EnergyConfig) -> EnergyConfig:
    """The configuration of the run in `folder`, with what `config` may change of it.

    Raises:
        ConfigError: it was trained with others of the values that may not change.
    """
    checkpoint.require(folder)
    run = Run.load(folder).config
    saved, given = run.to_dict(), config.to_dict()
    changed = [name for name in saved if saved[name] != given[name] and name not in (*RESUMABLE, *_resolved(run))]
    if changed:
        raise ConfigError(
            f"{folder} was trained with other values of {', '.join(changed)}: a run resumes with Run.load({str(folder)!r}).config, "
            f"of which {', '.join(RESUMABLE)} may change"
        )
    return run.replace(**{name: given[name] for name in RESUMABLE})


def _resolved(config: EnergyConfig) -> Iterator[str]:
    """The fields that a run's first start may have set by itself."""
    if config.starts_from_a_model:
        yield from ("displacement_scale", "displacement_scale_min")
    if config.memory_budget:
        yield from ("gradient_checkpointing", "checkpoint_steps")
    if not config.text_loss_weight:
        yield "text_loss_weight"
