"""python -m energy_flow_mlx.recover RUN: how much of held-out sentences a run brings back as text."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..checks import MOST, check_int
from ..cli import Parser, exit_code, run_command
from ..config import EnergyConfig
from ..data.teacher import Teacher
from ..dataset.open import data_of_run
from ..dataset.teacher import UnknownTeacher, teacher_of_run
from ..files import resolve
from ..models.energy_flow import EnergyFlow
from ..program import call_of, does
from ..strict_json import to_json
from ..text.scores import NO_BLEU, TOTAL
from ..text.search import Search
from .recovery import recover, table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a kernel failed), 2 (refused), 130 (interrupted)."""
    parser = Parser(prog=call_of("recover"), description=does(__doc__))
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run with a text decoder")
    parser.add_argument("--sentences", type=int, default=1000, metavar="INT", help="the most sentences (default: %(default)s)")
    parser.add_argument("--num-beams", type=int, default=Search().num_beams, metavar="INT", help="texts kept at a time (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=0, metavar="INT", help="of correction, at most, in rows of their own; takes a text corrector (default: 0)"
    )
    parser.add_argument("--max-length", type=int, default=Search().max_length, metavar="INT", help="the most tokens of a text (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="INT", help="sentences at a time (default: %(default)s)")
    parser.add_argument("--teacher", metavar="NAME", help="folder or hub id of the run's teacher, or builtin (default: as the run tells)")
    parser.add_argument("--json", action="store_true", help="print a JSON object in place of the table")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _recover(arguments))


def _recover(arguments: argparse.Namespace) -> int:
    most = check_int("--sentences", arguments.sentences, 1, MOST)
    batch_size = check_int("--batch-size", arguments.batch_size, 1, MOST)
    rounds = check_int("--rounds", arguments.rounds, 0, MOST)
    search = Search(num_beams=arguments.num_beams, max_length=arguments.max_length)
    model = EnergyFlow.from_pretrained(arguments.run)
    config = EnergyConfig.from_json(resolve(arguments.run, "config.json"))
    try:
        teacher = teacher_of_run(arguments.run, config, arguments.teacher)
    except UnknownTeacher as error:
        teacher = None
        print(f"note: no cosines: {error}", file=sys.stderr)
    _check_answers(arguments.run, model, teacher, search, rounds)
    data = data_of_run(config, model.text_encoder.tokeniser)
    found = recover(model, data, teacher, search, config, rounds=rounds, most=most, batch_size=batch_size)
    if any(scores[TOTAL].bleu is None for scores in found.scores.values()):
        print(f"note: {NO_BLEU}", file=sys.stderr)
    print(to_json(dataclasses.asdict(found)) if arguments.json else table(found))
    return 0


def _check_answers(run: Path, model: EnergyFlow, teacher: Teacher | None, search: Search, rounds: int) -> None:
    """Refuse a model that cannot answer before its data are read."""
    try:
        texts = model.decode(mx.zeros((1, model.config.surface_dim)), search=dataclasses.replace(search, max_length=2))
        if rounds:
            model.correct(texts, mx.zeros((1, model.config.embedding_dim)), teacher, rounds=0, search=search)
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from error


if __name__ == "__main__":
    run_command(main)
