"""python -m energy_flow_mlx.evaluate RUN: judge a saved model on held-out pairs, beside baselines."""

import sys
from collections.abc import Sequence
from pathlib import Path

from .cli import Parser
from .config import ConfigError
from .data.records import DataError
from .data.source import open_data
from .models.energy_flow import EnergyFlow
from .ops.failures import KernelError, kernel_errors
from .training.mlp import mlp_row
from .training.report import held_out_rows, table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 1 (a kernel fails here), or 2 when the folder or an argument is refused."""
    parser = Parser(prog="python -m energy_flow_mlx.evaluate", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder with config.json and model.safetensors")
    parser.add_argument("--data", metavar="FOLDER|FILE", help="where pairs come from (default: what the model was trained on)")
    parser.add_argument("--batch-size", metavar="INT", help="pairs at a time (default: that of the run)")
    parser.add_argument(
        "--mlp-baseline", action="store_true", help="train an MLP of the model's size for as many steps, for the table"
    )
    arguments = parser.parse_args(argv)
    try:
        model = EnergyFlow.from_pretrained(arguments.run)
        changes = {"data": arguments.data, "batch_size": arguments.batch_size}
        config = model.config.replace(**{name: value for name, value in changes.items() if value is not None})
        data = open_data(
            config.data,
            train=config.train_pairs,
            validation=config.validation_pairs,
            test=config.test_pairs,
            seed=config.seed,
            dim=config.embedding_dim,
            vocab_size=config.text_vocab_size,
            max_length=config.text_max_length,
            tokeniser=model.text_encoder.tokeniser,
        )
        if data.tokeniser is None:
            config = model.config = config.replace(text_loss_weight=0)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with kernel_errors():
            rows = held_out_rows(model, data, config.batch_size)
            if arguments.mlp_baseline:
                rows.append(mlp_row(model, data, config))
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (DataError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows, f"{len(data.test)} held-out test pairs of {data.name}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
