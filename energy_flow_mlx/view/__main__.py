"""python -m energy_flow_mlx.view RUN: the flows of a text, as a page to play and turn, or as an animation."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..cli import Parser, exit_code, run_command
from ..files import write_aside
from ..models.energy_flow import EnergyFlow
from ..models.trace import Trace
from ..plot.animation import WRITERS, animate, save_animation
from ..program import call_of, does
from ..train.keeping import at_step
from .page import page

TEXT = "A dog runs in the park."
FLOWS = 20_000  # drawn of each run: more make the page slow


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a kernel failed), 2 (invalid folder or argument), 130 (interrupted)."""
    arguments = _parser().parse_args(argv)
    return exit_code(lambda: _view(arguments))


def _view(arguments: Namespace) -> int:
    out: Path = arguments.out
    if out.suffix not in WRITERS:
        raise ValueError(f"--out {out}: accepted are files in {', '.join(WRITERS)}")
    several = {"--other": arguments.other, "--other-step": arguments.other_step}
    for option, value in several.items():
        if value is not None and out.suffix != ".html":
            raise ValueError(f"{option} {value}: two runs or steps stand beside each other on a page; give --out FILE.html")
    if arguments.flows < 1:
        raise ValueError(f"--flows {arguments.flows}: accepted is 1 or more")
    shown = [(arguments.run, arguments.step)]
    if any(value is not None for value in several.values()):
        shown.append((arguments.other or arguments.run, arguments.other_step))
    folders = list(dict.fromkeys(folder for folder, _ in shown))
    traces = {_name(folder, folders, step): _trace(folder, step, arguments.text) for folder, step in shown}
    if out.suffix == ".html":
        written = page(traces, most=arguments.flows)
        write_aside(out, lambda aside: aside.write_text(written, encoding="utf-8"))
    else:
        save_animation(animate(next(iter(traces.values())), most=arguments.flows, title=arguments.text), out)
    print(f"{out}: {', '.join(f'{name}: {trace!r}' for name, trace in traces.items())}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog=call_of("view"), description=does(__doc__))
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder with config.json, model.safetensors and tokenizer.json")
    parser.add_argument("--text", default=TEXT, help=f"whose flows are shown (default: {TEXT})")
    parser.add_argument("--step", type=int, metavar="N", help="its checkpoint of that step, where train --keep left it (default: the last)")
    parser.add_argument("--other", type=Path, metavar="RUN", help="a second run or checkpoint, shown beside it")
    parser.add_argument("--other-step", type=int, metavar="N", help="the same of the second run, or a second step of the same run")
    parser.add_argument("--flows", type=int, default=FLOWS, metavar="INT", help=f"flows that are drawn of each run (default: {FLOWS})")
    parser.add_argument(
        "--out", type=Path, default=Path("flows.html"), metavar="FILE",
        help=".html: a page that needs no network (default: flows.html); .gif, and with ffmpeg .mp4 or .webm: an animation",
    )  # fmt: skip
    return parser


def _trace(folder: Path, step: int | None, text: str) -> Trace:
    return EnergyFlow.from_pretrained(folder if step is None else at_step(folder, step)).trace([text])


def _name(folder: Path, folders: Sequence[Path], step: int | None) -> str:
    """The folder's name, or the path where both have the same; and the step that was asked for."""
    same = len({each.resolve().name for each in folders}) < len(folders)
    return (str(folder) if same else folder.resolve().name) + ("" if step is None else f", step {step}")


if __name__ == "__main__":
    run_command(main)
