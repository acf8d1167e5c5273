"""python -m energy_flow_mlx.train_tokenizer TEXTS ... --out tokenizer.json: learn a tokeniser from plain text files."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .cli import Parser
from .config import EnergyConfig
from .data.text_lines import read_texts
from .data.tokeniser import WHITESPACE, Tokeniser

_KINDS = ("wordpiece", WHITESPACE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, or 2 when a file or an argument is refused."""
    parser = Parser(prog="python -m energy_flow_mlx.train_tokenizer", description=__doc__)
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXTS", help="UTF-8 files with one text a line")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the new tokenizer.json")
    parser.add_argument(
        "--vocab-size", type=int, default=EnergyConfig().text_vocab_size, metavar="INT",
        help="the most entries, special tokens included; the text_vocab_size of the model (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--kind", choices=_KINDS, default=_KINDS[0],
        help="pieces of words, or whole words for smoke tests (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        if arguments.out.exists():
            raise FileExistsError(f"{arguments.out} exists: choose another file (--out)")
        texts = [text for path in arguments.texts for text in read_texts(path)]
        learn = Tokeniser.whitespace if arguments.kind == WHITESPACE else Tokeniser.train
        tokeniser = learn(texts, arguments.vocab_size)
        tokeniser.save(arguments.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.out}: {tokeniser.vocab_size} entries, learned from {len(texts)} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
