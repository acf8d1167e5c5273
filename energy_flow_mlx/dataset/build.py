"""Building a dataset folder: read and select pairs, embed each distinct text once, write shards.

Running the same command again resumes an interrupted build: the sources are read again, which is fast, and existing
shards are kept. The result is the same bit for bit.
"""

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..bar import Bar
from ..checks import check_int
from ..data.corpus import MAX_SEED
from ..data.shared import SharedTeacher
from ..data.teacher import Teacher, open_teacher
from ..data.tokenisers import open_tokeniser
from ..distributed import ALONE, World
from ..files import digest, naming, write_aside
from ..strict_json import to_json, write_json
from ..text.tokeniser import Tokeniser
from .claim import PLAN, claimed
from .folder import FORMAT, DatasetFolder, read_about, shard_name
from .formats.rows import Selection
from .origin import Origin
from .plan import HeldOut, make_plan, usable
from .records import DataError, Faults
from .shards import write_pairs, write_shards, write_tokens
from .spool import Spool

_SPOOL = ".spool"
_EVERYTHING = Selection()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a build. Equal settings and sources give equal folders.

    validation, test: a number of pairs, or a source; None: 1000 pairs, at most a tenth.
    fraction, limit: the fraction of the pairs of `sources` to use, then the most of these.
    selection: the columns and labels to read.
    teacher: None is the built-in one, which requires that no source has embeddings.
    dim, normalise, pooling, dtype, teacher_max_length: passed to `open_teacher`.
    tokeniser: copied into the folder, and decodes the sources' tokens; a spec of `open_tokeniser`.
    batch_size: texts that the teacher embeds at a time.
    shard_rows: texts per file.
    skip_bad: skip and count invalid records instead of raising.
    """

    sources: tuple[str, ...]
    validation: HeldOut = None
    test: HeldOut = None
    fraction: float = 1.0
    limit: int | None = None
    seed: int = 0
    selection: Selection = _EVERYTHING
    teacher: str | None = None
    dim: int | None = None
    pooling: str | None = None
    normalise: bool = True
    dtype: str = "float32"
    teacher_max_length: int | None = None
    tokeniser: str | None = None
    batch_size: int = 64
    shard_rows: int = 16_384
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one source, got none")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        check_int("seed", self.seed, 0, MAX_SEED)
        for name in ("validation", "test", "limit", "dim", "batch_size", "shard_rows", "teacher_max_length"):
            value = getattr(self, name)
            if isinstance(value, int):
                check_int(name, value, 0 if name in ("validation", "test") else 1)

    def held_out(self) -> dict[str, HeldOut]:
        """The values of `validation` and `test` by name; test first, because it has priority over validation."""
        return {"test": self.test, "validation": self.validation}


def build(settings: Settings, folder: Path, *, quiet: bool = False, world: World = ALONE) -> DatasetFolder:
    """Build a dataset folder, or resume an interrupted build; a finished folder of the same settings is kept.

    world: processes of which this is the first; the others, in `data.shared.serve`, embed their share of the texts.

    Raises:
        FileNotFoundError: a source or the teacher is missing.
        ValueError (DataError): a source is invalid, no training pairs remain, embedding sizes differ, or the folder
            holds something else.
        BlockingIOError: another process is building the folder.
    """
    # Test, validation, training: a pair that is in several sources belongs to the first of these.
    specs = {name: (value,) for name, value in settings.held_out().items() if isinstance(value, str)}
    sources = {
        name: [Origin(spec, settings.seed, settings.selection) for spec in part]
        for name, part in {**specs, "train": settings.sources}.items()
    }
    tokeniser = None if settings.tokeniser is None else open_tokeniser(settings.tokeniser)
    key = _key(settings, sources, tokeniser)
    if (folder / "dataset.json").is_file() and not (folder / PLAN).is_file():
        if read_about(folder).get("plan") == key:
            return DatasetFolder(folder)
        raise DataError(f"{folder}: holds a dataset of other settings or sources; name another folder", "in use")
    with naming(folder), claimed(folder, key, begun=(folder / shard_name(0)).is_file) as note:
        if not (folder / "dataset.json").is_file():
            for aside in folder.glob(".*.new.safetensors"):  # shards that an interrupted build did not finish
                aside.unlink()
            try:
                with closing(Spool(folder / _SPOOL)) as spool:
                    about = _write(settings, folder, sources, tokeniser, spool, note, quiet, world)
            finally:
                shutil.rmtree(folder / _SPOOL, ignore_errors=True)
            write_aside(folder / "dataset.json", lambda aside: write_json(aside, {"format": FORMAT, "plan": key, **about}))
    return DatasetFolder(folder)


def _key(settings: Settings, sources: dict[str, list[Origin]], tokeniser: Tokeniser | None) -> str:
    """A hash of everything that the folder's contents depend on; the paths of the sources are not part of it."""
    values = dataclasses.asdict(settings)
    for name in ("sources", "tokeniser", *sources):
        values.pop(name, None)
    contents = {name: [source.contents() for source in part] for name, part in sources.items()}
    parts = [FORMAT, values, contents, None if tokeniser is None else _digest(tokeniser)]
    return hashlib.sha256(to_json(parts, indent=None, sort_keys=True).encode()).hexdigest()


def _digest(tokeniser: Tokeniser) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokeniser.save(path)
        return digest(path)


def _write(
    settings: Settings,
    folder: Path,
    sources: dict[str, list[Origin]],
    tokeniser: Tokeniser | None,
    spool: Spool,
    note: Callable[[str, str], None],
    quiet: bool,
    world: World,
) -> dict[str, Any]:
    """Write every file but dataset.json; returns the contents of dataset.json."""
    faults = Faults(settings.skip_bad)
    counts = {name: _read(part, tokeniser, spool, faults, quiet) for name, part in sources.items()}
    plan = make_plan(counts, settings.held_out(), settings.fraction, settings.limit, settings.seed, spool, faults)
    given = spool.given()[plan.rows]
    teacher = None if given.all() else _teacher(settings, spool.dim, int(given.sum()), world)
    if teacher is not None:
        note("teacher", teacher.fingerprint)
    dims = {"the sources'": spool.dim, "the teacher's": None if teacher is None else teacher.dim, "--dim": settings.dim}
    known = {name: dim for name, dim in dims.items() if dim is not None}
    if len(set(known.values())) > 1:
        sizes = ", ".join(f"{name} {dim}" for name, dim in known.items())
        raise DataError(f"embedding sizes differ: {sizes}", "embedding size")

    files, lengths = write_shards(folder, plan.rows, spool, teacher, settings.shard_rows, settings.batch_size, quiet)
    write_pairs(folder / "pairs.safetensors", plan, spool.pairs())
    files.append("pairs.safetensors")
    if spool.has_tokens:
        write_tokens(folder / "tokens.safetensors", plan.pairs, spool)
        files.append("tokens.safetensors")
    if tokeniser is not None:
        tokeniser.save(folder / "tokenizer.json")
        files.append("tokenizer.json")
    hashes = {name: digest(folder / name) for name in files}
    without_text = spool.lengths()[spool.pairs().input[plan.pairs]] < 0
    return {
        "fingerprint": hashlib.sha256(to_json(hashes, indent=None, sort_keys=True).encode()).hexdigest()[:16],
        "pairs": plan.sizes,
        "rows": len(plan.rows),
        "dim": next(iter(known.values())),
        "shard_rows": settings.shard_rows,
        "teacher": None if teacher is None else {"name": teacher.name, "fingerprint": teacher.fingerprint},
        "given_embeddings": int(given.sum()),
        "normalised": max(abs(length - 1) for length in lengths) < 1e-3,
        "lengths": lengths,
        "tokens": spool.has_tokens,
        "pairs_without_input_text": int(without_text.sum()),
        "left_out": dict(sorted(faults.counts.items())),
        "seed": settings.seed,
        "sources": {name: {source.spec: source.contents() for source in part} for name, part in sources.items()},
        "files": hashes,
    }


def _read(
    sources: list[Origin], tokeniser: Tokeniser | None, spool: Spool, faults: Faults, quiet: bool
) -> int:
    """Add the pairs of the sources to the spool; returns their number."""
    count = 0
    for source in sources:
        records = source.records(faults)
        bar = Bar(records, desc=f"read {source.spec}", unit=" pairs", quiet=quiet)
        for place, record in usable(bar, tokeniser, faults):
            if spool.add(place, record):
                count += 1
            else:
                faults.leave_out("duplicates")
    return count


def _teacher(settings: Settings, given_dim: int | None, given: int, world: World) -> Teacher:
    if settings.teacher is None and given:
        raise DataError(
            f"embeddings from the sources: {given}, but other texts have none: --teacher must name the teacher of the former",
            "no teacher",
        )
    opened: Callable[..., Teacher] = open_teacher if world.size == 1 else partial(SharedTeacher, world)
    return opened(
        spec=settings.teacher or "builtin",
        dim=given_dim if settings.dim is None else settings.dim,
        pooling=settings.pooling,
        normalise=settings.normalise,
        dtype=settings.dtype,
        max_length=settings.teacher_max_length,
    )
