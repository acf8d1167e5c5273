"""The command line of training."""

import argparse
import logging
import math
import threading
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cli import Parser, add_config_flags, exit_code, flag, given_fields, layered_config
from ..config import ConfigError, EnergyConfig
from ..dataset.records import DataError
from ..distributed import TIMEOUT, World, joined
from ..files import resolve
from ..logs import LEVELS, shown
from ..ops.failures import KernelError
from ..program import call_of
from . import checkpoint
from .checkpoint import CheckpointError, NonFiniteState
from .found import NAMED, found_run
from .init_from import model_fields
from .keeping import BEST
from .run import follow
from .seeds import parsed_seeds, train_seeds
from .step import NonFiniteLoss
from .trainer import RESUMABLE, Trainer, new_folder

_USAGE = (
    "%(prog)s [--preset NAME] [--config FILE] [--FIELD VALUE ...] [--out RUN | --resume RUN|latest|best] [--seeds N,N,...] "
    "[--dry-run] [--profile DIR] [--mlp-baseline] [--ablation] [--log-level LEVEL] [--quiet]"
)
_DESCRIPTION = (
    "Train an energy-flow model and judge it on held-out pairs. Without arguments: the tiny preset on built-in data. "
    "The preset comes first, --config goes over it, and the flags over both. With --init-from RUN the configuration of that run comes first."
)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (the loss became non-finite, or a kernel fails here), 2 (refused), 130 (interrupted)."""
    arguments = _parser(argv).parse_args(argv)
    with joined(arguments.collective_timeout) as world, shown(_level(arguments, world)):
        return exit_code(
            lambda: _train(arguments, world) if world.first else follow(world), world,
            refused=(ConfigError, CheckpointError, DataError, OSError), failed=(NonFiniteLoss, NonFiniteState, KernelError),
        )  # fmt: skip


def _level(arguments: Namespace, world: World) -> str:
    """The least of what this process notes: what all could say, the first one says for them; with --quiet a warning."""
    least = ("warning" if arguments.quiet else "debug") if world.first else "error"
    return max(arguments.log_level, least, key=LEVELS.index)


def _train(arguments: Namespace, world: World) -> int:
    fields = given_fields(arguments)
    if arguments.resume is not None and arguments.out is not None:
        raise ConfigError(f"--out {arguments.out} is not accepted with --resume: a run stays in its folder")
    if arguments.seeds is not None and (arguments.resume is not None or "seed" in fields):
        raise ConfigError("--seeds is not accepted with --resume or --seed: the same command with --seeds goes on with what is not complete")
    if arguments.seeds is not None and (world.size > 1 or arguments.shard_optimiser):
        raise ConfigError("--seeds is not accepted with mlx.launch and --shard-optimiser: start one run after another")
    if arguments.dry_run and (arguments.seeds is not None or world.size > 1):
        raise ConfigError("--dry-run is not accepted with --seeds or mlx.launch: try one run in one process")
    resume = arguments.resume is not None
    if resume:
        folder = _run_to_resume(arguments.resume)
        config = _resumed_config(folder, arguments.preset, arguments.config, fields)
    else:
        config = layered_config(arguments.preset, arguments.config, fields, model_fields)
        one = arguments.seeds is None
        if config.part != "all":
            source = Path(config.init_from)
            source = source.parent if source.name == BEST else source
            name = (source if source.is_dir() else Path("runs") / source.name).with_name(f"{source.name}-{config.part}")
        else:
            name = Path("runs") / (arguments.preset or "tiny")
            name = name.with_name(f"{name.name}-seed{config.seed}") if one else name
        folder = arguments.out or (new_folder(name) if one else name)
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("quiet", "profile", "mlp_baseline", "ablation")}
    if arguments.seeds is not None:
        return train_seeds(config, parsed_seeds(arguments.seeds), folder, **options)
    trainer = Trainer(config, out=folder, resume=resume, world=world, shard_optimiser=arguments.shard_optimiser, **options)
    if arguments.dry_run:
        print(trainer.dry_run())
        return 0
    trainer.fit()
    return trainer.exit_code


def _parser(argv: Sequence[str] | None) -> Parser:
    parser = Parser(prog=call_of("train"), usage=_USAGE, description=_DESCRIPTION)
    parser.add_argument(
        "--resume", metavar="RUN|latest|best",
        help="go on with the run in this folder, bit-identically; or with that in runs/ which was saved last, or has the best validation",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="RUN", help="new folder for the run (default: runs/<preset>-seed<seed>, or with -2, -3, … after it)"
    )
    parser.add_argument("--seeds", metavar="N,N,...", help="train with each of these seeds, in RUN-seedN, and compare what they reach")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="leave a trace of a few steps in this folder")
    parser.add_argument(
        "--collective-timeout", type=_seconds, default=TIMEOUT, metavar="SECONDS",
        help="with mlx.launch: end the run if a process does not go on for so long; the first step may compile kernels for minutes (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--shard-optimiser", action="store_true", help="with mlx.launch: the processes divide the moments of AdamW among them, for large models"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, in what time and memory, and what would be written; write nothing")
    parser.add_argument(
        "--log-level", choices=LEVELS, default="info", metavar="LEVEL",
        help=f"the least of what is noted on standard error: {', '.join(LEVELS)} (default: info); the bar is not of it",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print the final table alone, and warnings")
    parser.add_argument("--mlp-baseline", action="store_true", help="train an MLP of the model's size for the final table")
    parser.add_argument("--ablation", action="store_true", help="train the model with its flow left out for the final table")
    add_config_flags(parser, argv)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted: it takes a number of seconds above 0 up to {threading.TIMEOUT_MAX:.0f}")
    return value


def _run_to_resume(named: str) -> Path:
    if named not in NAMED:
        return Path(named)
    run, told = found_run(named)
    logger.info(told)
    return run


def _resumed_config(
    run: Path, preset: str | None, file: Path | None, fields: Mapping[str, Any]
) -> EnergyConfig:
    """The run's own configuration, with what a resumed run may change."""
    refused = [flag(name) for name in fields if name not in RESUMABLE]
    refused += ["--preset"] if preset is not None else []
    refused += ["--config"] if file is not None else []
    if refused:
        raise ConfigError(
            f"--resume takes the configuration from {run}; {', '.join(refused)} cannot be changed, "
            f"accepted are {', '.join(flag(name) for name in RESUMABLE)}"
        )
    checkpoint.require(run)
    return EnergyConfig.from_json(resolve(run, "config.json")).replace(**fields)
