"""What quantised weights save and cost: `python scripts/benchmarks/quantised.py [--run RUN ...] [--preset NAME ...]`.

For each trained run, and for each preset with random weights:

    file      MB of model.safetensors
    cosine    of a run, on the held-out pairs of its data, as `python -m energy_flow_mlx.evaluate` says it; then the flows that arrive.
              Of a preset, whose weights are random: mean cosine with what the unquantised model gives for the same two inputs

The table is Markdown.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import numpy as np

from energy_flow_mlx import EnergyConfig, EnergyFlow
from energy_flow_mlx.config import PRESETS
from energy_flow_mlx.dataset.open import data_of_run
from energy_flow_mlx.nn.quantised import BITS
from energy_flow_mlx.train.evaluation import evaluate
from energy_flow_mlx.train.loss import cosine


def row(name: str, model: EnergyFlow, scored: str) -> str:
    """A line of the table."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save_weights_with_steps(path)
        size = path.stat().st_size / 1e6
    weights = f"{model.quantised_bits} bits" if model.quantised_bits else "float32"
    return f"| {name} | {weights} | {size:.2f} | {scored} |"


def of_run(run: Path, bits: int) -> str:
    """The line of a trained run. bits: 0 for its own weights."""
    model = EnergyFlow.from_pretrained(run)
    config = EnergyConfig.from_json(run / "config.json")
    if bits:
        model.quantise(bits)
    scores = evaluate(model, data_of_run(config, model.text_encoder.tokeniser).test, config)
    return row(f"`{run.name}`", model, f"{scores.cosine:.4f}, {scores.arrived:.1%} arrive")


def of_preset(name: str, bits: int) -> str:
    """The line of a preset with random weights."""
    config = EnergyConfig.preset(name)
    mx.random.seed(0)
    model = EnergyFlow(config.replace(input_residual=False))  # with it the output of random weights is the input
    model.eval()
    rows = np.random.default_rng(0).standard_normal((2, config.embedding_dim)).astype(np.float32)
    inputs = mx.array(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    wanted = model(inputs).embedding
    if bits:
        model.quantise(bits)
    alike = float(np.mean(np.array(cosine(model(inputs).embedding, wanted))))
    return row(f"`{name}`, random", model, f"{alike:.4f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", default=[], metavar="RUN", help="folders of trained runs")
    parser.add_argument("--preset", nargs="+", default=[], choices=tuple(PRESETS), help="presets, with random weights")
    options = parser.parse_args()
    print("| model | weights | file, MB | cosine |\n|---|---|---|---|")
    for run in options.run:
        for bits in (0, *BITS[::-1]):
            print(of_run(run, bits), flush=True)
    for preset in options.preset:
        for bits in (0, *BITS[::-1]):
            print(of_preset(preset, bits), flush=True)


if __name__ == "__main__":
    main()
