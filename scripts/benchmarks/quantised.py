"""What quantised weights save and cost: `python scripts/benchmarks/quantised.py [--run RUN ...] [--preset NAME ...]`.

For each trained run, and for each preset with random weights:

    file      MB of model.safetensors
    cosine    of a run, on the held-out pairs of its data, as `python -m energy_flow_mlx.evaluate` says it; then the flows that arrive.
              Of a preset, whose weights are random: mean cosine with what the unquantised model gives for the same inputs
    ms        of the model on a batch, in evaluation mode; the fastest of --repeats. The batch size is that of the configuration

The table is Markdown.
"""

import argparse
import time
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


def random_inputs(config: EnergyConfig) -> mx.array:
    """A batch of embeddings of length 1."""
    rows = np.random.default_rng(0).standard_normal((config.batch_size, config.embedding_dim)).astype(np.float32)
    return mx.array(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def milliseconds(model: EnergyFlow, inputs: mx.array, repeats: int) -> float:
    """The fastest forward pass, the first two aside."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        mx.eval(model(inputs))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[2:])


def row(name: str, model: EnergyFlow, scored: str, inputs: mx.array, repeats: int) -> str:
    """A line of the table."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save_weights_with_steps(path)
        size = path.stat().st_size / 1e6
    weights = f"{model.quantised_bits} bits" if model.quantised_bits else "float32"
    return f"| {name} | {weights} | {size:.2f} | {scored} | {milliseconds(model, inputs, repeats):.1f} |"


def of_run(run: Path, bits: int, repeats: int) -> str:
    """The line of a trained run. bits: 0 for its own weights."""
    model = EnergyFlow.from_pretrained(run)
    config = EnergyConfig.from_json(run / "config.json")
    if bits:
        model.quantise(bits)
    scores = evaluate(model, data_of_run(config, model.text_encoder.tokeniser).test, config)
    return row(f"`{run.name}`", model, f"{scores.cosine:.4f}, {scores.arrived:.1%} arrive", random_inputs(config), repeats)


def of_preset(name: str, bits: int, repeats: int) -> str:
    """The line of a preset with random weights."""
    config = EnergyConfig.preset(name)
    mx.random.seed(0)
    model = EnergyFlow(config.replace(input_residual=False))  # with it the output of random weights is the input
    model.eval()
    inputs = random_inputs(config)
    wanted = model(inputs).embedding
    if bits:
        model.quantise(bits)
    alike = float(np.mean(np.array(cosine(model(inputs).embedding, wanted))))
    return row(f"`{name}`, random", model, f"{alike:.4f}", inputs, repeats)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", default=[], metavar="RUN", help="folders of trained runs")
    parser.add_argument("--preset", nargs="+", default=[], choices=tuple(PRESETS), help="presets, with random weights")
    parser.add_argument("--repeats", type=int, default=10, help="timed forward passes (default: 10)")
    options = parser.parse_args()
    print("| model | weights | file, MB | cosine | ms a batch |\n|---|---|---|---|---|")
    for run in options.run:
        for bits in (0, *BITS[::-1]):
            print(of_run(run, bits, options.repeats), flush=True)
    for preset in options.preset:
        for bits in (0, *BITS[::-1]):
            print(of_preset(preset, bits, options.repeats), flush=True)


if __name__ == "__main__":
    main()
