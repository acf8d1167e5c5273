"""What the campaigns kill and starve: small jobs that write files, each with a check of what lies there.

A job runs in a forked child of a process that has imported everything and computed nothing, which saves the second that an import
takes. MLX starts its threads with the first computation, so such a child is as good as a new process; the parent must never compute.
"""

import hashlib
import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np

import energy_flow_mlx  # noqa: F401  before mlx: on Linux it binds the system's BLAS
from energy_flow_mlx import EnergyFlow, export_torch_checkpoint
from energy_flow_mlx.convert import __main__ as convert
from energy_flow_mlx.dataset import __main__ as dataset
from energy_flow_mlx.dataset import shards
from energy_flow_mlx.dataset.arrays import open_arrays
from energy_flow_mlx.dataset.folder import DatasetFolder
from energy_flow_mlx.files import COMPLETE, INCOMING, digest, resolve
from energy_flow_mlx.tensors import read_metadata, read_tensors
from energy_flow_mlx.text import TextCache
from energy_flow_mlx.train import checkpoint
from energy_flow_mlx.train import command as training
from energy_flow_mlx.train.interrupt import STDERR
from energy_flow_mlx.train.keeping import BEST

# A model of a few hundred numbers; its steps take milliseconds.
TINY = {
    "lattice_width": 2,
    "lattice_height": 2,
    "lattice_depth": 2,
    "input_embedding_dim_from_teacher": 12,
    "neuron_hidden_dim": 4,
    "neuron_output_dim": 4,
    "carrier_hidden_size": 8,
    "text_vocab_size": 120,
    "text_model_dim": 8,
    "text_num_heads": 2,
    "text_feedforward_dim": 8,
    "text_num_layers": 1,
    "text_max_positions": 16,
    "batch_size": 4,
    "train_pairs": 40,
    "validation_pairs": 8,
    "test_pairs": 8,
    "use_exploration_noise": True,
}

Announce = Callable[[int], object]
Work = Callable[[Announce], int | None]


def flags(**changes: object) -> list[str]:
    """The command line of a training of the tiny model with these fields changed."""
    given: list[str] = []
    for name, value in {**TINY, **changes}.items():
        flag = name.replace("_", "-")
        given += ([f"--{flag}"] if value else [f"--no-{flag}"]) if isinstance(value, bool) else [f"--{flag}", str(value)]
    return given


class Ended(NamedTuple):
    """How a child ended: `code`, its exit code, negative for a signal; `killed` by us; `announced`, the last number it announced
    (-1: none); `printed`, what it wrote to stdout and stderr; its `seconds`."""

    code: int
    killed: bool
    announced: int
    printed: str
    seconds: float


def child(work: Work, log: Path, kill_after: float | None = None, limit: float = 600.0) -> Ended:
    """Run `work` in a forked child; kill it with SIGKILL after `kill_after` seconds, and after `limit` at any rate."""
    reading, writing = os.pipe()
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        os.close(reading)
        _run(work, log, writing)
    os.close(writing)
    announced, killed, buffer = -1, False, b""
    end = began + (limit if kill_after is None else kill_after)
    while True:
        ready, _, _ = select.select([reading], [], [], max(end - time.monotonic(), 0) if not killed else None)
        if not ready:
            os.kill(process, signal.SIGKILL)
            killed = True
            continue
        block = os.read(reading, 4096)
        if not block:
            break
        buffer += block
    os.close(reading)
    *complete, _ = buffer.split(b"\n")
    if complete:
        announced = int(complete[-1])
    _, status = os.waitpid(process, 0)
    printed = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, killed and code == -signal.SIGKILL, announced, printed, time.monotonic() - began)


def _run(work: Work, log: Path, writing: int) -> None:
    code = 70
    try:
        with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            os.dup2(file.fileno(), STDERR)  # what a signal handler writes goes past sys.stderr
            try:
                code = work(lambda number: os.write(writing, b"%d\n" % number)) or 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except OSError as error:  # as `cli.run_command` ends a process
                print(f"error: {error}", file=sys.stderr)
                code = 2
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


@contextmanager
def after(owner: object, name: str, call: Callable[..., object]) -> Iterator[None]:
    """Call `call` with the arguments of `owner.name` each time that it has returned."""
    original = getattr(owner, name)

    def wrapped(*arguments: object, **options: object) -> object:
        result = original(*arguments, **options)
        call(*arguments, **options)
        return result

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, original)


class Job:
    """One job in the folder `base/NAME`.

    `work` starts or resumes it, announces what must be safe from then on, and returns the exit code; `check` looks at the folder after
    an end at any moment, and gives a line a fault; `results` are hashes of the files of a complete job, which must be those of an
    uninterrupted one. `longest`: seconds after which a campaign that kills does so at the latest.
    """

    name: str
    longest: float

    def __init__(self, base: Path) -> None:
        self.base = base

    @property
    def folder(self) -> Path:
        return self.base / self.name

    def work(self, announce: Announce) -> int:
        raise NotImplementedError

    def check(self, announced: int) -> list[str]:
        raise NotImplementedError

    def results(self) -> dict[str, str]:
        found = [*self.folder.iterdir(), *(self.folder / COMPLETE).glob("*")]
        names = sorted({path.name for path in found} - {COMPLETE})
        return {name: contents(resolve(self.folder, name)) for name in names}


class Training(Job):
    """A training that saves after every `interval` steps."""

    name = "training"
    longest = 1.0

    def __init__(self, base: Path, steps: int = 100, interval: int = 2) -> None:
        super().__init__(base)
        self.steps, self.interval = steps, interval

    @property
    def elsewhere(self) -> Path:
        """Where a training saves its last step if its own folder takes nothing more."""
        return self.base / f"{self.name}-elsewhere"

    def work(self, announce: Announce) -> int:
        begun = resolve(self.folder, "trainer.json").is_file()
        how = ["--resume", str(self.folder)] if begun else ["--out", str(self.folder), *self.fields()]
        shutil.rmtree(self.elsewhere, ignore_errors=True)
        self.elsewhere.mkdir()
        os.environ["TMPDIR"] = str(self.elsewhere)
        with after(checkpoint, "save", lambda *arguments: announce(arguments[-1].step)):
            return self.main([*how, "--quiet"])

    def main(self, arguments: list[str]) -> int:
        """The command with these arguments."""
        return training.main(arguments)

    def fields(self) -> list[str]:
        return flags(
            training_steps=self.steps, checkpoint_interval=self.interval, validation_interval=self.interval, log_interval=1
        )

    def check(self, announced: int) -> list[str]:
        others = self.elsewhere.iterdir() if self.elsewhere.is_dir() else ()
        found = {run: _step(run) for run in (self.folder, *others) if resolve(run, "trainer.json").is_file()}
        if not found:
            return [f"no checkpoint, {announced} was announced"] if announced >= 0 else []
        last = max(found.values())
        faults = [f"the checkpoint is of step {last}, {announced} was announced"] if last < announced else []
        for run, step in found.items():
            faults += self._faults(run, step)
        return faults

    def _faults(self, run: Path, step: int) -> list[str]:
        trained = EnergyFlow.from_pretrained(run).trained_steps
        if resolve(run / BEST, "config.json").is_file():
            EnergyFlow.from_pretrained(run / BEST)
        faults = [f"trainer.json is of step {step}, model.safetensors of {trained}"] if trained != step else []
        for name in ("model.safetensors", "optimizer.safetensors"):
            faults += not_finite(resolve(run, name))
        lines = {line["step"] for line in checkpoint.read_metrics(run) if "loss" in line}
        lost = sorted(set(range(1, step + 1)) - lines) if run == self.folder else []  # elsewhere: what could still be read is there
        return faults + ([f"metrics.jsonl lacks the steps {lost}, the checkpoint is of step {step}"] if lost else [])

    def results(self) -> dict[str, str]:
        return {name: contents(resolve(self.folder, name)) for name in checkpoint.FILES}


class Build(Job):
    """The build of a dataset folder of several shards."""

    name = "build"
    longest = 0.2

    def work(self, announce: Announce) -> int:
        done = len(list(self.folder.glob("rows-*"))) if self.folder.is_dir() else 0
        written = iter(range(done + 1, 1_000_000))
        with after(shards, "_write_shard", lambda *_: announce(next(written))):
            return dataset.main(
                ["build", "builtin:600", "--to", str(self.folder), "--shard-rows", "64", "--dim", "16", "--quiet", "--test", "20"]
            )

    def check(self, announced: int) -> list[str]:
        if (self.folder / "dataset.json").is_file():
            return [f"changed since the build: {name}" for name in DatasetFolder(self.folder).verify()]
        found = sorted(self.folder.glob("rows-*.safetensors")) if self.folder.is_dir() else []
        for path in found:
            open_arrays(path, {"embedding": "F32", "text": "U8", "text_offsets": "I64", "has_text": "U8"})
        return [f"{len(found)} shards, {announced} were announced"] if len(found) < announced else []


class Conversion(Job):
    """A conversion of a PyTorch checkpoint of the tiny model with its optimiser."""

    name = "conversion"
    longest = 0.06

    def work(self, announce: Announce) -> int:
        if resolve(self.folder, "model.safetensors").is_file():  # it was committed: a new conversion would be refused
            EnergyFlow.from_pretrained(self.folder)
            checkpoint.require(self.folder)
            return 0
        code = convert.main([str(self.base / "export"), "--to", str(self.folder), "--tokenizer", str(self.base / "tokenizer.json")])
        if code == 0:
            announce(1)
        return code

    def check(self, announced: int) -> list[str]:
        if not resolve(self.folder, "model.safetensors").is_file():
            return ["no model, it was announced"] if announced > 0 else []
        EnergyFlow.from_pretrained(self.folder)
        return [fault for name in ("model.safetensors", "optimizer.safetensors") for fault in not_finite(resolve(self.folder, name))]

    def prepare(self, run: Path) -> None:
        """Make the checkpoint out of a finished training."""
        torch = self.base / "torch"
        assert convert.main([str(run), "--to-torch", "--to", str(torch)]) == 0
        mapper = ["--mapper", str(torch / "mapper.pt")]
        assert export_torch_checkpoint.main([str(torch / "checkpoint.pt"), str(self.base / "export"), *mapper]) == 0
        (self.base / "tokenizer.json").write_bytes((run / "tokenizer.json").read_bytes())


class Cache(Job):
    """A text cache that is saved again and again with five more texts."""

    name = "cache"
    longest = 0.2

    def __init__(self, base: Path, most: int = 1000) -> None:
        super().__init__(base)
        self.most = most

    @property
    def path(self) -> Path:
        return self.folder / "surfaces.safetensors"

    def work(self, announce: Announce) -> int:
        try:
            self.folder.mkdir(exist_ok=True)
            cache = TextCache.load(self.path)
            while len(cache) < self.most:
                texts = [f"text {number}" for number in range(len(cache), len(cache) + 5)]
                cache.surfaces("model", texts, lambda missing: np.array([[len(text)] * 16 for text in missing], np.float32))
                cache.save(self.path)
                announce(len(cache))
        except OSError as error:  # a library's call: the caller gets the error
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    def check(self, announced: int) -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = len(TextCache.load(self.path))
        return [f"{found} texts, {announced} were announced"] if found < announced else []


def _step(run: Path) -> int:
    return int(json.loads(resolve(run, "trainer.json").read_text(encoding="utf-8"))["step"])


def contents(path: Path) -> str:
    """A hash of what a file holds. The order of tensors and metadata in a safetensors file is no part of that."""
    if path.suffix != ".safetensors":
        return digest(path)
    sha = hashlib.sha256(json.dumps(read_metadata(path), sort_keys=True).encode())
    for name, array in sorted(read_tensors(path).items()):
        sha.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return sha.hexdigest()


def not_finite(path: Path) -> list[str]:
    """Which tensors of a file hold NaN or infinity, a line each."""
    return [f"{path.name}: {name} is not finite" for name, array in read_tensors(path).items() if not np.isfinite(array).all()]


def leftovers(folder: Path) -> list[str]:
    """Files in a folder that a write left half done."""
    if not folder.is_dir():
        return []
    partial = [path.name for path in folder.rglob("*") if path.name in (INCOMING, ".spool") or ".new" in path.name]
    return [f"left behind: {', '.join(sorted(partial))}"] if partial else []


def checked(job: Job, announced: int, log: Path) -> list[str]:
    """`job.check` in a child of its own; an error while loading is a fault too."""
    found = log.with_suffix(".faults")
    found.unlink(missing_ok=True)

    def work(_: Announce) -> int:
        try:
            faults = job.check(announced)
        except Exception as error:
            faults = [f"does not load: {type(error).__name__}: {error}"]
        found.write_text("\n".join(faults), encoding="utf-8")
        return 0

    ended = child(work, log)
    if ended.code:
        return [f"the check ended with {ended.code}: {ended.printed[-500:]}"]
    return [line for line in found.read_text(encoding="utf-8").splitlines() if line]


def complete(job: Job, log: Path) -> dict[str, str]:
    """What an uninterrupted job leaves, by file name. Leaves its folder there.

    Raises:
        RuntimeError: it failed.
    """
    ended = child(job.work, log)
    if ended.code:
        raise RuntimeError(f"{job.name} fails without any campaign, with {ended.code}:\n{ended.printed}")
    return job.results()


def prepared(base: Path, training: Training, cache: Cache) -> dict[str, dict[str, str]]:
    """Bring the jobs' sources into `base`, unless they are there; returns what each job leaves when nothing disturbs it."""
    reference = base / "reference.json"
    if not reference.is_file():
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        log, conversion = base / "log", Conversion(base)
        found = {training.name: complete(training, log)}
        ended = child(lambda _: conversion.prepare(training.folder), log)
        if ended.code:
            raise RuntimeError(f"no checkpoint to convert:\n{ended.printed}")
        found |= {job.name: complete(job, log) for job in (Build(base), conversion, cache)}
        for name in found:
            shutil.rmtree(base / name)
        reference.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return dict(json.loads(reference.read_text(encoding="utf-8")))
