"""python -m energy_flow_mlx.dataset: build, inspect and convert datasets, and train tokenisers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..checks import is_blank, whole_number
from ..cli import Parser, exit_code, run_command
from ..data.corpus import MAX_SEED
from ..data.shared import dismiss, serve
from ..distributed import World, joined
from ..nn.pooling import POOLINGS
from ..program import call_of, does
from ..text.tokeniser import Tokeniser
from . import inspection
from .build import Settings, build
from .convert import convert
from .folder import PARTS, DatasetFolder
from .formats import READ
from .formats.rows import Selection
from .origin import Origin
from .records import Faults
from .stream import training_texts

_SOURCES = f"""\
sources: a file ({", ".join(READ)}), a dataset folder,
hub:OWNER/NAME[@REVISION][:PART] (a dataset of the hub; PART selects files by name) or builtin:COUNT (generated pairs)"""

_TOKENISERS = {"wordpiece": Tokeniser.train, "whitespace": Tokeniser.whitespace}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, 1 (`inspect --verify` found a changed file, or a kernel failed), 2 (bad argument or data),
        130 (interrupted).
    """
    options = _parser().parse_args(argv)
    commands = {"build": _build, "inspect": _inspect, "convert": _convert, "train-tokenizer": _train_tokeniser}
    with joined() as world:
        work = commands[options.command] if world.first else _serve
        return exit_code(lambda: work(options, world), world, interrupted="interrupted; the same command resumes a build")


def _serve(options: argparse.Namespace, world: World) -> int:
    """What other processes than the first do: they embed for `build`, and leave the rest to it."""
    if options.command == "build":
        serve(world)
    return 0


def _build(options: argparse.Namespace, world: World) -> int:
    settings = Settings(
        sources=tuple(options.sources),
        validation=_held_out(options.validation),
        test=_held_out(options.test),
        fraction=options.fraction,
        limit=options.limit,
        seed=options.seed,
        selection=_selection(options),
        teacher=options.teacher,
        dim=options.dim,
        pooling=options.pooling,
        normalise=options.normalise,
        dtype=options.dtype,
        teacher_max_length=options.teacher_max_length,
        tokeniser=options.tokenizer,
        batch_size=options.batch_size,
        shard_rows=options.shard_rows,
        skip_bad=options.skip_bad,
    )
    folder = build(settings, options.to, quiet=options.quiet, world=world)
    dismiss(world)
    print("\n".join(inspection.summary(folder)))
    if empty := [name for name in PARTS[1:] if not folder.sizes[name]]:
        print(
            f"warning: no pairs in {' and '.join(empty)}, without which training refuses the folder: "
            f"{' '.join(f'--{name} COUNT' for name in empty)} holds pairs out",
            file=sys.stderr,
        )
    return 0


def _inspect(options: argparse.Namespace, world: World) -> int:
    faults = Faults(skip=True)
    folder = DatasetFolder(Path(options.source)) if Path(options.source).is_dir() else None
    if folder is not None:
        print("\n".join(inspection.summary(folder)))
    records = Origin(options.source, options.seed, _selection(options)).records(faults)
    print("\n".join(inspection.statistics(records, options.examples)))
    if faults.counts:
        print(f"left out: {faults}")
    if folder is not None and options.verify:
        changed = folder.verify()
        print(f"changed since the build: {', '.join(changed)}" if changed else "every file has its hash")
        return 1 if changed else 0
    return 0


def _convert(options: argparse.Namespace, world: World) -> int:
    if options.to.exists() and not options.overwrite:
        raise FileExistsError(f"{options.to} exists: name another file, or give --overwrite")
    faults = Faults(options.skip_bad)
    source = Origin(options.source, options.seed, _selection(options))
    count, lost = convert(source, options.to, faults, options.tokenizer, options.max_length)
    print(f"{options.to}: {count} pairs")
    for name, times in lost.items():
        print(f"left out, {options.to.suffix} cannot store it: {name} ({times} times)")
    if faults.counts:
        print(f"left out: {faults}")
    return 0


def _train_tokeniser(options: argparse.Namespace, world: World) -> int:
    faults = Faults(options.skip_bad)
    texts: list[str] = []
    for spec in options.sources:
        if Path(spec).is_dir():  # the training part only: the tokeniser must not see held-out texts
            texts += training_texts(DatasetFolder(Path(spec)), options.limit)
            continue
        for _, record in Origin(spec, options.seed, _selection(options)).records(faults):
            texts += [text for text in (record.input, record.target) if text is not None and not is_blank(text)]
            if len(texts) >= options.limit:
                break
    if not texts:
        raise ValueError(f"{', '.join(options.sources)}: no text to train on; left out: {faults}")
    tokeniser = _TOKENISERS[options.model](texts, options.vocab_size)
    tokeniser.save(options.to)
    print(f"{options.to}: {tokeniser.vocab_size} entries, from {len(texts)} texts; left out: {faults}")
    return 0


def _held_out(text: str | None) -> int | str | None:
    count = None if text is None else whole_number(text)
    return text if count is None else count


def _selection(options: argparse.Namespace) -> Selection:
    return Selection(options.columns, tuple(getattr(options, "label", ())))


def _columns(text: str) -> tuple[str, str]:
    names = text.split(",")
    if len(names) != 2 or not all(names):
        raise argparse.ArgumentTypeError(f"must be INPUT,TARGET, got {text!r}")
    return names[0], names[1]


def _parser() -> Parser:
    parser = Parser(prog=call_of("dataset"), description=does(__doc__))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = Parser(add_help=False)
    common.add_argument(
        "--columns",
        type=_columns,
        metavar="INPUT,TARGET",
        help="the columns of the texts; numbers from 1 for a file without a header",
    )
    common.add_argument(
        "--seed", type=int, default=0, metavar="INT", help=f"random seed, 0 to {MAX_SEED} (default: 0)"
    )
    skip = Parser(add_help=False)
    skip.add_argument(
        "--skip-bad", action="store_true", help="skip and count invalid records instead of stopping at the first"
    )

    def command(name: str, help: str, *parents: Parser) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=_SOURCES, parents=parents,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip

    make = command("build", "build a dataset folder; the same command resumes an interrupted build", common, skip)
    make.add_argument("sources", nargs="+", metavar="SOURCE")
    make.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the new folder")
    for part in PARTS[1:]:
        make.add_argument(
            f"--{part}",
            metavar="COUNT|SOURCE",
            help="number of pairs to hold out, or a source of held-out pairs (default: 1000, at most a tenth)",
        )
    make.add_argument(
        "--fraction", type=float, default=1.0, metavar="NUMBER", help="fraction of the pairs to use (default: 1)"
    )
    make.add_argument("--limit", type=int, metavar="INT", help="maximum number of pairs, after --fraction")
    make.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="LABEL",
        help="keep SNLI pairs with this label; repeatable (default: all but -)",
    )
    make.add_argument(
        "--teacher",
        metavar="SPEC",
        help="embeds the texts that have no embedding (default: builtin, if no source has embeddings)",
    )
    make.add_argument(
        "--dim", type=int, metavar="INT", help="embedding size, if the teacher allows a choice (default: the teacher's)"
    )
    make.add_argument(
        "--pooling",
        metavar="NAME",
        help=f"the teacher's: {', '.join(POOLINGS)}, or several joined by + (default: the teacher folder's, else mean)",
    )
    make.add_argument(
        "--normalise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="scale the teacher's embeddings to length 1",
    )
    make.add_argument("--dtype", default="float32", metavar="NAME", help="the teacher's dtype (default: float32)")
    make.add_argument(
        "--teacher-max-length",
        type=int,
        metavar="INT",
        help="tokens after which the teacher truncates a text (default: the teacher folder's, else 128)",
    )
    make.add_argument(
        "--tokenizer", metavar="SPEC", help="copied into the folder; decodes the sources' tokens to text"
    )
    make.add_argument(
        "--batch-size", type=int, default=64, metavar="INT", help="texts embedded at a time (default: 64)"
    )
    make.add_argument("--shard-rows", type=int, default=16_384, metavar="INT", help="texts per file (default: 16384)")
    make.add_argument("--quiet", action="store_true", help="no progress bars")

    look = command("inspect", "print counts, lengths, duplicates and examples", common)
    look.add_argument("source", metavar="SOURCE")
    look.add_argument("--examples", type=int, default=3, metavar="INT", help="pairs to show (default: 3)")
    look.add_argument("--verify", action="store_true", help="compare the files of a dataset folder with their hashes")

    turn = command("convert", "write the pairs of a source as .jsonl, .efb1, .efb2, .pt or .safetensors", common, skip)
    turn.add_argument("source", metavar="SOURCE")
    turn.add_argument(
        "--to", type=Path, required=True, metavar="FILE", help="the new file; its extension selects the format"
    )
    turn.add_argument(
        "--tokenizer", metavar="SPEC", help="encodes texts that have no tokens, and decodes tokens that have no text"
    )
    turn.add_argument("--max-length", type=int, default=128, metavar="INT", help="tokens of a text (default: 128)")
    turn.add_argument("--overwrite", action="store_true", help="replace the file")

    learn = command("train-tokenizer", "train a tokeniser on the texts of sources", common, skip)
    learn.add_argument("sources", nargs="+", metavar="SOURCE")
    learn.add_argument("--to", type=Path, required=True, metavar="FILE", help="the new tokenizer.json")
    learn.add_argument(
        "--model",
        choices=tuple(_TOKENISERS),
        default="wordpiece",
        help="wordpiece, or whitespace: the most frequent words, for smoke tests (default: wordpiece)",
    )
    learn.add_argument("--vocab-size", type=int, default=8000, metavar="INT", help="the most entries (default: 8000)")
    learn.add_argument(
        "--limit", type=int, default=1_000_000, metavar="INT", help="texts to train on (default: 1000000)"
    )
    return parser


if __name__ == "__main__":
    run_command(main)
