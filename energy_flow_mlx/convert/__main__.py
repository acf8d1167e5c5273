"""python -m energy_flow_mlx.convert SRC --to DIR: convert PyTorch checkpoints to model folders; --to-torch: back."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import Parser, fail, run_command
from . import to_mlx, to_torch
from .source import read_source
from .summary import table

DTYPES = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 for an invalid file or argument."""
    options = _parser().parse_args(argv)
    try:
        if options.to_torch:
            _refuse_for_torch(options)
            rows, notes = to_torch.convert_to_torch(
                options.source, options.to, options.dtype, not options.without_optimizer
            )
            files = ["checkpoint.pt", "mapper.pt"]
            headers = ("mlx", "torch")
        else:
            overrides = dict(_assignment(text) for text in options.set)
            source = read_source(options.source, options.mapper, options.config, not options.without_optimizer)
            conversion = to_mlx.convert(source, options.dtype, options.init_missing, overrides)
            files = to_mlx.write(conversion, options.to, options.tokenizer, options.decoder_tokenizer)
            rows, notes, headers = conversion.rows, conversion.notes, ("torch", "mlx")
            if "tokenizer.json" not in files:
                notes = [*notes, "tokeniser: absent, so the model takes no texts; --tokenizer FILE adds it"]
            if conversion.untrained:
                notes = [*notes, f"untrained, initialised at random: {', '.join(conversion.untrained)}"]
    except (ValueError, OSError) as error:
        return fail(error, 2)
    print(table(rows, headers))
    print("\n".join(notes))
    print(f"{options.to}: {', '.join(files)}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="python -m energy_flow_mlx.convert", description=__doc__)
    parser.add_argument(
        "source", type=Path, metavar="SRC",
        help="a folder written by scripts/export_torch_checkpoint.py, a .safetensors file, or a .pt checkpoint (needs torch); "
        "with --to-torch: a model folder",
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
        "--to-torch", action="store_true", help="convert back: write checkpoint.pt and mapper.pt (needs torch)"
    )
    return parser


def _refuse_for_torch(options: argparse.Namespace) -> None:
    given = [name for name in ("mapper", "tokenizer", "decoder_tokenizer", "config", "init_missing", "set") if getattr(options, name)]
    if given:
        raise ValueError(f"--{', --'.join(given).replace('_', '-')} cannot be used with --to-torch")


def _assignment(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: accepted is NAME=VALUE")
    return name, {"true": True, "false": False}.get(value.lower(), value)


if __name__ == "__main__":
    run_command(main)
