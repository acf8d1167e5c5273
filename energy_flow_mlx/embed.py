"""python -m energy_flow_mlx.embed RUN TEXTS --to FILE: what a model predicts for each line of a text file, as .npy or .jsonl."""

import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .checks import MOST, check_int
from .cli import Parser, exit_code, run_command
from .config import read_config
from .data.shared import Embed, dismiss, spread
from .dataset.formats.lines import lines_of, read_lines, without_break
from .dataset.records import Faults
from .dataset.teacher import teacher_of_run
from .distributed import World, joined
from .files import resolve, write_aside
from .models.energy_flow import EnergyFlow
from .models.energy_flow_files import model_folder
from .program import call_of, does
from .strict_json import to_json
from .train import memory

STANDARD_INPUT = "-"
ENDINGS = (".npy", ".jsonl")

Batch = tuple[list[str], NDArray[np.float32]]  # B texts and their embeddings [B, E]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a kernel failed), 2 (invalid folder, text or argument), 130 (interrupted)."""
    options = _parser().parse_args(argv)
    with joined() as world:
        return exit_code(lambda: _embed(options, world), world)


def _embed(options: Namespace, world: World) -> int:
    count = 0

    def embedded(embed: Embed, dim: int) -> Iterator[Batch]:
        nonlocal count
        for texts in batched(lines(options.texts), options.batch_size * world.size):
            count += len(texts)
            world.exchange(texts)
            yield texts, spread(embed, texts, dim, world)

    if options.to.suffix not in ENDINGS:
        raise ValueError(f"--to {options.to}: accepted are files that end in {' or '.join(ENDINGS)}")
    if world.first and options.to.exists() and not options.overwrite:
        raise FileExistsError(f"{options.to} exists: name another file, or give --overwrite")
    check_int("--batch-size", options.batch_size, 1, MOST)
    folder = model_folder(options.run)
    memory.limit_evaluation(read_config(resolve(folder, "config.json")), options.batch_size)
    model = EnergyFlow.from_pretrained(folder)
    if options.text_encoder and model.config.input_residual:
        raise ValueError(
            f"--text-encoder is not accepted with {options.run}, which adds its input's embedding to its output (input_residual): its texts take a teacher"
        )
    teacher = None if options.text_encoder else teacher_of_run(folder, model.config, options.teacher)
    write: Callable[..., None] = write_npy if options.to.suffix == ".npy" else write_jsonl
    embed, dim = partial(model.embed, teacher=teacher, batch_size=options.batch_size), model.config.embedding_dim
    if world.first:
        write_aside(options.to, lambda aside: write(aside, embedded(embed, dim), dim))
        dismiss(world)
    while not world.first and (texts := world.exchange(None)[0]) is not None:
        spread(embed, texts, dim, world)
    if world.first:
        print(f"{options.to}: {count} texts, {dim} numbers each")
    return 0


def lines(texts: str) -> Iterator[str]:
    """The lines of a file, or of standard input for "-", one text each; an empty one is the text "empty".

    Raises:
        FileNotFoundError, DataError: no such file, or a line is not UTF-8; names the line.
    """
    standard: BinaryIO = sys.stdin.buffer
    faults = Faults(skip=False)
    found = lines_of(standard, Path("standard input"), faults) if texts == STANDARD_INPUT else read_lines(Path(texts), faults)
    return (without_break(text) for _, text in found)


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` items in order; the last may be shorter."""
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def write_npy(path: Path, batches: Iterable[Batch], dim: int) -> None:
    """Embeddings [N, dim] float32 as NumPy's file, row by row: the header, which has room for any N, is written again at the end."""
    with path.open("wb") as file:
        count = 0
        _npy_header(file, count, dim)
        start = file.tell()
        for _, embeddings in batches:
            file.write(np.ascontiguousarray(embeddings, "<f4").data)
            count += len(embeddings)
        file.seek(0)
        _npy_header(file, count, dim)
        assert file.tell() == start, "NumPy leaves room for the count"


def _npy_header(file: Any, count: int, dim: int) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)})


def write_jsonl(path: Path, batches: Iterable[Batch], dim: int) -> None:
    """A line {"text": ..., "embedding": [dim numbers]} for each text."""
    with path.open("w", encoding="utf-8") as file:
        for texts, embeddings in batches:
            for text, row in zip(texts, embeddings, strict=True):
                file.write(to_json({"text": text, "embedding": row.tolist()}, indent=None) + "\n")


def _parser() -> Parser:
    parser = Parser(prog=call_of("embed"), description=does(__doc__))
    parser.add_argument("run", metavar="RUN", help="a model folder, or OWNER/NAME of the hub")
    parser.add_argument("texts", metavar="TEXTS", help="a UTF-8 file with a text on each line; - is standard input")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the new .npy or .jsonl file; its rows are of length 1")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--teacher", metavar="SPEC", help="the one that the model was trained with (default: the built-in one, if it was)")
    source.add_argument(
        "--text-encoder", action="store_true", help="no teacher: the model's text encoder reads the texts (models without input_residual)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="INT", help="texts at a time (default: 64)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    return parser


if __name__ == "__main__":
    run_command(main)
