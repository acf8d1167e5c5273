"""python -m energy_flow_mlx.upload RUN OWNER/NAME: put a trained model on the Hugging Face hub, with a model card."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from .cli import Parser, exit_code, run_command
from .config import EnergyConfig
from .dataset.open import data_of_run
from .files import resolve
from .model_files import check_repository, publish
from .models.energy_flow import EnergyFlow
from .models.energy_flow_files import OPTIONAL_FILES
from .program import call_of, does
from .results import FILE as RESULTS
from .results import Results
from .runs import Run
from .strict_json import to_json
from .train import memory
from .train.report import held_out

FILES = ("config.json", "model.safetensors", *OPTIONAL_FILES, "curves.png", "metrics.jsonl", "results.json")  # those of them that there are
CARD, PLOT = "README.md", "curves.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a kernel failed), 2 (invalid folder, data or argument, or the upload failed), 130 (interrupted)."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _upload(options))


def _upload(options: Namespace) -> int:
    check_repository("repository", options.repository)
    config = Run.load(options.run).config
    memory.limit_evaluation(config, config.batch_size)
    model = EnergyFlow.from_pretrained(options.run)
    converted = resolve(options.run, "conversion.json").is_file()  # its config.json names no data that it was trained on
    measured = not (options.without_table or converted)
    scores = scores_of(options.run, model, config) if measured else None
    found = {name: resolve(options.run, name) for name in FILES}
    files: dict[str, Path | bytes] = {name: path for name, path in found.items() if path.is_file()}
    text = card(options.repository, model, config, scores, plot=PLOT in files, converted=converted)
    if options.dry_run:
        print(text)
        return 0
    files[CARD] = text.encode()
    where = publish(options.repository, files, message=f"energy flow, {model.trained_steps} steps", private=options.private)
    print(f"{where}: {', '.join(files)}")
    return 0


def scores_of(folder: Path, model: EnergyFlow, config: EnergyConfig) -> str:
    """The table of results.json, or where there is none that of `python -m energy_flow_mlx.evaluate`."""
    if resolve(folder, RESULTS).is_file():
        return str(Results.load(folder))
    data = data_of_run(config, model.text_encoder.tokeniser)
    if data.tokeniser is None:
        config = config.replace(text_loss_weight=0)
    return str(held_out(model, data, config))


def card(
    repository: str, model: EnergyFlow, config: EnergyConfig, scores: str | None, *, plot: bool, converted: bool
) -> str:
    """The model card: what the model is and how it is used, its scores, the command that trains it, its curves and configuration.

    Args:
        repository: OWNER/NAME.
        scores: a table in plain text; None: they were not measured.
        plot: whether curves.png is beside the card.
        converted: whether the model was trained in PyTorch, and is not this package's.
    """
    from huggingface_hub import ModelCardData

    about = ModelCardData(library_name="energy-flow-mlx", tags=["mlx", "energy-flow", "feature-extraction"])
    origin = "converted from PyTorch" if converted else f"trained for {model.trained_steps} steps on `{config.data}`"
    quantised = f", its weights quantised to {model.quantised_bits} bits" if model.quantised_bits else ""
    built_in = config.data == "builtin" and not converted
    opened = f'open_teacher("builtin", dim={config.embedding_dim})' if built_in else 'open_teacher("...")  # that of its training data'
    use = f'''\
from energy_flow_mlx import EnergyFlow
from energy_flow_mlx.data import open_teacher

model = EnergyFlow.from_pretrained("{repository}")
teacher = {opened}
model.nearest(["A dog runs in the park."], ["An animal is outside.", "Prices fell."], teacher)'''
    target = "that embedding itself, carried through the lattice" if config.pairs == "copy" else "the embedding of the text that belongs to it"
    parts = [
        f"---\n{about.to_yaml()}\n---",
        f"# {repository.split('/')[1]}",
        f"An energy-flow model, its lattice {config.lattice_width}x{config.lattice_height}x{config.lattice_depth}, {origin}{quantised}. "
        f"From the embedding of a text, {config.embedding_dim} numbers, it predicts {target}.",
        _code("python", use),
        "## Results",
        "Not measured." if scores is None else f"Mean cosine with the target's embedding, and retrieval among the targets.\n\n{_code('', scores)}",
    ]
    if not converted:
        parts += ["## Training", _code("", config.command())]
    if plot:
        parts.append(f"![cosine, arrivals and loss by training step]({PLOT})")
    values = to_json(config.to_dict())
    return "\n\n".join([*parts, "## Configuration", _code("json", values)]) + "\n"


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def _parser() -> Parser:
    parser = Parser(prog=call_of("upload"), description=does(__doc__))
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or a model folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="of the hub; made if there is none")
    parser.add_argument("--private", action="store_true", help="make the repository a private one")
    parser.add_argument("--without-table", action="store_true", help="do not evaluate the model on its held-out pairs for the card")
    parser.add_argument("--dry-run", action="store_true", help="print the model card and upload nothing")
    return parser


if __name__ == "__main__":
    run_command(main)
