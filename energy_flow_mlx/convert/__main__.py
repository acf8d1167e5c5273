"""python -m energy_flow_mlx.convert SRC --to DIR: convert PyTorch checkpoints to model folders, and back; quantise."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import Parser, exit_code, run_command
from ..nn.quantised import BITS
from ..program import call_of, does
from . import to_mlx, to_torch
from .quantise import is_model_folder, quantise_folder, quantised
from .source import read_source
from .summary import Row, shortened, summary, table

DTYPES = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 (an invalid file or argument), 130 (interrupted)."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _convert(options))


def _convert(options: argparse.Namespace) -> int:
    rows, headers, notes, files = _converted(options)
    if rows:
        print(table(rows, headers) if options.verbose else summary(rows))
    print("\n".join(notes if options.verbose else map(shortened, notes)))
    print(f"{options.to}: {', '.join(files)}")
    return 0


def _converted(options: argparse.Namespace) -> tuple[list[Row], tuple[str, str], list[str], list[str]]:
    """What was done to each tensor, from and to, remarks, and the files that were written."""
    if options.to_torch:
        _refuse(options, "--to-torch", "mapper", "tokenizer", "decoder_tokenizer", "config", "init_missing", "set", "quantise")
        rows, notes = to_torch.convert_to_torch(
            options.source, options.to, options.dtype, not options.without_optimizer
        )
        return rows, ("mlx", "torch"), notes, ["checkpoint.pt", "mapper.pt"]
    if options.quantise and is_model_folder(options.source):
        _refuse(options, "the --quantise of a model folder", "mapper", "tokenizer", "decoder_tokenizer", "config", "init_missing", "set")
        return [], ("", ""), *quantise_folder(options.source, options.to, options.quantise, options.dtype)
    overrides = dict(_assignment(text) for text in options.set)
    with_optimizer = not (options.without_optimizer or options.quantise)  # a quantised model is not trained further
    source = read_source(options.source, options.mapper, options.config, with_optimizer)
    conversion = to_mlx.convert(source, options.dtype, options.init_missing, overrides)
    notes = list(conversion.notes)
    if options.quantise:
        notes.append(quantised(conversion.model, options.quantise))
    if conversion.untrained:
        notes.append(f"untrained, initialised at random: {', '.join(conversion.untrained)}")
    files = to_mlx.write(conversion, options.to, options.tokenizer, options.decoder_tokenizer)
    if "tokenizer.json" not in files:
        notes.append("tokeniser: absent, so the model takes no texts; --tokenizer FILE adds it")
    return conversion.rows, ("torch", "mlx"), notes, files


def _parser() -> Parser:
    parser = Parser(prog=call_of("convert"), description=does(__doc__))
    parser.add_argument(
        "source", type=Path, metavar="SRC",
        help="a folder written by scripts/export_torch_checkpoint.py, a .safetensors file, or a .pt checkpoint (needs torch); "
        "with --to-torch or --quantise: a model folder",
    )  # fmt: skip
    parser.add_argument("--to", type=Path, metavar="DIR", required=True, help="the new folder")
    parser.add_argument(
        "--mapper", type=Path, metavar="FILE", help="tensors input_mapper.* and output_collector.*; .pt or .safetensors"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="the text encoder's tokenizer.json")
    parser.add_argument("--decoder-tokenizer", type=Path, metavar="FILE", help="the text decoder's tokenizer.json, T5's")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the torch configuration as JSON (default: the source's)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="dtype of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--init-missing", action="store_true", help="initialise mapper, collector or text encoder if absent"
    )
    parser.add_argument("--without-optimizer", action="store_true", help="do not convert the optimiser's moments")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a field of the source's configuration",
    )
    parser.add_argument(
        "--quantise", type=int, choices=BITS, metavar="BITS",
        help="bits of a number in the weights' matrices, 4 or 8, for inference: such a model cannot be trained further",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="print what was done to each tensor, and remarks in full")
    parser.add_argument(
        "--to-torch", action="store_true", help="convert back: write checkpoint.pt and mapper.pt (needs torch)"
    )
    return parser


def _refuse(options: argparse.Namespace, what: str, *names: str) -> None:
    given = [name for name in names if getattr(options, name)]
    if given:
        raise ValueError(f"--{', --'.join(given).replace('_', '-')} cannot be used with {what}")


def _assignment(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: accepted is NAME=VALUE")
    return name, {"true": True, "false": False}.get(value.lower(), value)


if __name__ == "__main__":
    run_command(main)
