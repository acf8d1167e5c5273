"""python -m energy_flow_mlx.evaluate RUN: evaluate a saved model and baselines on held-out pairs."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from .cli import Parser, exit_code, run_command
from .dataset.open import data_of_run
from .distributed import World, joined
from .models.energy_flow import EnergyFlow
from .program import call_of, does
from .results import FILE, Results
from .runs import Run
from .strict_json import to_json
from .train import memory
from .train.evaluation import evaluate
from .train.report import held_out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a kernel failed), 2 (invalid folder, data or argument), 130 (interrupted)."""
    parser = Parser(prog=call_of("evaluate"), description=does(__doc__))
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder with config.json and model.safetensors")
    parser.add_argument("--data", metavar="FOLDER|FILE", help="the data set (default: that of the training)")
    parser.add_argument("--batch-size", metavar="INT", help="pairs per batch (default: as in training)")
    parser.add_argument(
        "--mlp-baseline", action="store_true", help="also train and report an MLP of the model's size"
    )
    parser.add_argument("--ablation", action="store_true", help="train the model with its flow left out for as many steps")
    parser.add_argument("--json", action="store_true", help="print all scores as JSON, as in results.json")
    arguments = parser.parse_args(argv)
    with joined() as world:
        return exit_code(lambda: _evaluate(arguments, world), world)


def _evaluate(arguments: Namespace, world: World) -> int:
    changes = {"data": arguments.data, "batch_size": arguments.batch_size}
    trained = Run.load(arguments.run).config
    config = trained.replace(**{name: value for name, value in changes.items() if value is not None})
    if not (arguments.mlp_baseline or arguments.ablation):  # which train
        memory.limit_evaluation(config, config.batch_size)
    model = EnergyFlow.from_pretrained(arguments.run)
    data = world.in_turn(lambda: data_of_run(config, model.text_encoder.tokeniser))
    own = config.data == trained.data
    saving = own and not _held(arguments.run, model.trained_steps)
    if data.tokeniser is None:
        config = config.replace(text_loss_weight=0)
    if not world.first:
        evaluate(model, data.test, config, world)
        return 0
    results = held_out(model, data, config, mlp=arguments.mlp_baseline, ablation=arguments.ablation, world=world)
    if saving:
        results.save(arguments.run)
    if arguments.json:
        print(to_json(results.to_dict()))
        return 0
    print(results)
    if not own:
        print(f"(the energy flow was trained on {trained.data}, the other rows are fitted on the training pairs of {config.data})")
    return 0


def _held(run: Path, steps: int) -> bool:
    """Whether a run's folder has results already, and of a model of so many steps."""
    return (run / FILE).is_file() and Results.load(run).steps == steps


if __name__ == "__main__":
    run_command(main)
