"""python -m energy_flow_mlx.generate RUN [TEXT ...]: texts through a model and back to text.

Each text becomes a surface, its flows run, and the surface that they leave becomes a text again. Without TEXT and --file, texts are read
from standard input, one a line.
"""

import argparse
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from tqdm import tqdm

from ..checks import MOST, check_int
from ..cli import Parser, exit_code, run_command
from ..config import EnergyConfig
from ..dataset.teacher import UnknownTeacher, teacher_of_run
from ..files import resolve
from ..models.energy_flow import NEIGHBOURS, EnergyFlow
from ..program import call_of, does
from ..strict_json import to_json
from ..text.search import EARLY_STOPPING, Search
from .round_trip import Returned, RoundTrip
from .texts import MOST_CHARACTERS, Text, given_texts, read_lines

_STOPPING = {str(value).lower(): value for value in EARLY_STOPPING}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a kernel failed), 2 (refused), 130 (interrupted)."""
    arguments = _parser().parse_intermixed_args(argv)  # so that texts may follow options
    return exit_code(lambda: _generate(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog=call_of("generate"), description=does(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a model folder with a text decoder")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to send through the model")
    parser.add_argument("--file", type=Path, metavar="FILE", help="a file of texts, one a line, in place of TEXT")
    parser.add_argument("--json", action="store_true", help="write a JSON object a text: text, generated, cosine, cut")
    parser.add_argument("--teacher", metavar="NAME", help="folder or hub id of the run's teacher, or builtin (default: as the run tells)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="INT", help="texts at a time (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=0, metavar="INT",
        help="of correction at most: each keeps the text whose embedding is nearest to what was meant; in the copy task as many more by what the model returns for a text (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--neighbours", type=int, default=NEIGHBOURS, metavar="INT",
        help="likely tokens that a round tries in each place, where no beam is nearer; 0: none (default: %(default)s)",
    )  # fmt: skip
    group = parser.add_argument_group("search")
    default = Search()
    for name, type_, text in (
        ("num_beams", int, "texts kept at a time; 1: the best token at each place"),
        ("max_length", int, "the most tokens of a text"),
        ("min_length", int, "the fewest tokens"),
        ("length_penalty", float, "beams are compared by log-probability / length^penalty"),
        ("no_repeat_ngram_size", int, "no run of so many tokens occurs twice; 0: it may"),
    ):
        value = getattr(default, name)
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=type_, default=value, metavar="NUMBER", help=f"{text} (default: {value})")
    group.add_argument(
        "--early-stopping", choices=list(_STOPPING), default="false",
        help="end a beam search at as many finished texts as beams (true), once no open text could win as it stands (false), or at any length (never)",
    )  # fmt: skip
    return parser


def _generate(arguments: argparse.Namespace) -> int:
    search = Search(
        num_beams=arguments.num_beams,
        max_length=arguments.max_length,
        min_length=arguments.min_length,
        length_penalty=arguments.length_penalty,
        early_stopping=_STOPPING[arguments.early_stopping],
        no_repeat_ngram_size=arguments.no_repeat_ngram_size,
    )
    check_int("--batch-size", arguments.batch_size, 1, MOST)
    for name in ("rounds", "neighbours"):
        check_int(f"--{name}", getattr(arguments, name), 0, MOST)
    if arguments.texts and arguments.file is not None:
        raise ValueError(f"--file {arguments.file} is not accepted together with texts")
    model = EnergyFlow.from_pretrained(arguments.run)
    config = EnergyConfig.from_json(resolve(arguments.run, "config.json"))
    if model.text_decoder is None:
        raise ValueError(
            f"{arguments.run}: this model has no text decoder; one is trained on it with "
            f"{call_of('train')} --init-from {arguments.run} --part decoder"
        )
    if arguments.rounds and model.text_corrector is None:
        raise ValueError(
            f"{arguments.run}: this model has no text corrector, which --rounds {arguments.rounds} needs; one is trained on it with "
            f"{call_of('train')} --init-from {arguments.run} --part corrector"
        )
    try:
        teacher = teacher_of_run(arguments.run, config, arguments.teacher)
    except UnknownTeacher as error:
        if arguments.rounds and config.pairs != "copy":  # then the teacher alone embeds the texts of correction
            raise
        teacher = None
        print(f"note: no cosines{', and correction by what the model returns alone' if arguments.rounds else ''}: {error}", file=sys.stderr)
    round_trip = RoundTrip(
        model, teacher, search, config.text_max_length, arguments.rounds, arguments.neighbours,
        copies=arguments.batch_size if config.pairs == "copy" else 0,
    )  # fmt: skip
    texts, total = _texts(arguments)
    # Somebody who types wants an answer to each line.
    size = 1 if total is None and sys.stdin.isatty() else arguments.batch_size
    cut = 0
    with tqdm(total=total, unit="text", disable=None, dynamic_ncols=True) as bar:  # None: on a terminal only
        while batch := list(itertools.islice(texts, size)):
            for text, returned in zip(batch, round_trip([text.text for text in batch]), strict=True):
                returned = returned._replace(cut=returned.cut or text.cut)
                cut += returned.cut
                tqdm.write(_line(returned, arguments.json), file=sys.stdout)
            sys.stdout.flush()
            bar.update(len(batch))
            if getattr(sys.stdout, "failure", None):  # nobody reads on, and there may be no end to the texts
                break
    if cut:
        print(
            f"note: {cut} texts were cut: {config.text_max_length} tokens (text_max_length) of a text are read, and {MOST_CHARACTERS} characters",
            file=sys.stderr,
        )
    return 0


def _texts(arguments: argparse.Namespace) -> tuple[Iterator[Text], int | None]:
    """The texts, and how many there are, if that is known."""
    if arguments.texts:
        return given_texts(arguments.texts), len(arguments.texts)
    if arguments.file is None:
        return read_lines(io.TextIOWrapper(cast(io.TextIOWrapper, sys.stdin).buffer, "utf-8-sig"), "standard input"), None
    if not arguments.file.is_file():
        raise FileNotFoundError(f"{arguments.file}: no such file")
    with arguments.file.open("rb") as file:
        total = sum(1 for _ in file)
    return _file_lines(arguments.file), total


def _file_lines(path: Path) -> Iterator[Text]:
    with path.open(encoding="utf-8-sig") as file:
        yield from read_lines(file, str(path))


def _line(returned: Returned, as_json: bool) -> str:
    if as_json:
        return to_json(returned._asdict(), indent=None)
    cosine = "" if returned.cosine is None else f"   (cosine {returned.cosine:.3f})"
    return f"{returned.text}\n  -> {returned.generated}{cosine}"


if __name__ == "__main__":
    run_command(main)
