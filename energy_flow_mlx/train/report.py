"""How good a model is: its numbers on a split, baselines fitted on the training split, the table and the curves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..config import RunConfig
from ..data.source import PairBatch, PairData, PairDataset
from ..models.energy_flow import EnergyFlow
from .loss import energy_flow_loss, number

RIDGE_PENALTIES = tuple(10.0**power for power in range(-3, 4))  # tried on the validation split
_ROWS = 1024  # pairs read at a time


@dataclass(frozen=True)
class Evaluation:
    """Means over the pairs of a split: `cosine` of output and target, `surface_mse` to the mapped target, `loss`;
    `arrived`: the share of flows that reached an output plane by moving."""

    loss: float
    cosine: float
    surface_mse: float
    arrived: float


@dataclass(frozen=True)
class Row:
    """One line of the table; None where a method has no such number."""

    method: str
    cosine: float
    surface_mse: float | None = None
    arrived: float | None = None


def evaluate(model: EnergyFlow, data: PairDataset, config: RunConfig) -> Evaluation:
    """The model in evaluation mode (no dropout, no noise) over all pairs of `data`; its mode is put back.

    config: gives the batch size and the weights of the loss.
    """
    training = model.training
    model.eval()
    sums = np.zeros(3)
    arrived = ended = 0.0
    for batch in batches(data, config.batch_size):
        loss, parts = energy_flow_loss(model, config, batch)
        mx.eval(loss, parts)
        sums += len(batch.indices) * np.array([number(loss), number(parts.embedding), number(parts.surface)])
        arrived += number(parts.arrived)
        ended += number(parts.ended)
    model.train(training)
    loss_mean, distance, surface = (float(value) for value in sums / len(data))
    return Evaluation(loss_mean, 1 - distance, surface, arrived / max(ended, 1))


def baselines(data: PairData) -> list[Row]:
    """What stands beside the model on the test split: the input itself, the training split's mean target, and a ridge
    regression fitted on the training split whose penalty is the best on the validation split."""
    fit = RidgeFit.of(data.train)
    penalty = max(RIDGE_PENALTIES, key=lambda penalty: mean_cosine(data.validation, fit.solve(penalty)))
    ridge = fit.solve(penalty)
    nothing = np.zeros_like(ridge.weight)
    return [
        Row("input itself", mean_cosine(data.test, None)),
        Row("mean target", mean_cosine(data.test, Affine(nothing, fit.target_mean))),
        Row(f"ridge regression (penalty {penalty:g})", mean_cosine(data.test, ridge)),
    ]


@dataclass(frozen=True)
class Affine:
    """x -> x @ weight [E, E] + bias [E]."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


@dataclass(frozen=True)
class RidgeFit:
    """Sums over a split that give the ridge regression with intercept for any penalty."""

    input_mean: NDArray[np.float64]  # [E]
    target_mean: NDArray[np.float64]  # [E]
    eigenvalues: NDArray[np.float64]  # [E], of the inputs' covariance times N
    eigenvectors: NDArray[np.float64]  # [E, E]
    cross: NDArray[np.float64]  # [E, E], inputs with targets

    @classmethod
    def of(cls, data: PairDataset) -> "RidgeFit":
        """Read `data` once."""
        dim = data.dim
        inputs, targets = np.zeros(dim), np.zeros(dim)
        gram, cross = np.zeros((dim, dim)), np.zeros((dim, dim))
        for batch in batches(data, _ROWS):
            x, y = batch.input_embedding, batch.target_embedding
            inputs += x.sum(axis=0, dtype=np.float64)
            targets += y.sum(axis=0, dtype=np.float64)
            gram += x.T @ x
            cross += x.T @ y
        inputs, targets = inputs / len(data), targets / len(data)
        eigenvalues, eigenvectors = np.linalg.eigh(gram - len(data) * np.outer(inputs, inputs))
        return cls(inputs, targets, eigenvalues, eigenvectors, cross - len(data) * np.outer(inputs, targets))

    def solve(self, penalty: float) -> Affine:
        """The minimum of |targets - prediction|^2 + penalty |weight|^2 over the split."""
        inverse = 1 / (np.maximum(self.eigenvalues, 0) + penalty)
        weight = (self.eigenvectors * inverse) @ (self.eigenvectors.T @ self.cross)
        return Affine(weight, self.target_mean - self.input_mean @ weight)


def mean_cosine(data: PairDataset, prediction: Affine | None) -> float:
    """The mean cosine similarity of predictions (None: the inputs themselves) and targets; a zero row counts as 0."""
    total = 0.0
    for batch in batches(data, _ROWS):
        x, y = batch.input_embedding, batch.target_embedding
        predicted = x if prediction is None else x @ prediction.weight + prediction.bias
        norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(y, axis=1)
        total += float(np.sum(np.sum(predicted * y, axis=1) / np.maximum(norms, 1e-8)))
    return total / len(data)


def batches(data: PairDataset, size: int) -> Iterator[PairBatch]:
    """All pairs in order; the last batch may be smaller."""
    for start in range(0, len(data), size):
        yield data.batch(np.arange(start, min(start + size, len(data))))


def held_out_rows(model: EnergyFlow, data: PairData, config: RunConfig) -> list[Row]:
    """The rows of the table: the baselines and the model, on the test split."""
    result = evaluate(model, data.test, config)
    name = f"energy flow ({model.trained_steps} steps)"
    return [*baselines(data), Row(name, result.cosine, result.surface_mse, result.arrived)]


def table(rows: Sequence[Row], title: str) -> str:
    """The rows as plain text, the best cosine last."""
    width = max(len(row.method) for row in rows)
    lines = [title, f"{'':{width}}  {'cosine':>7}  {'surface MSE':>11}  {'arrived':>7}"]
    for row in sorted(rows, key=lambda row: row.cosine):
        surface = "" if row.surface_mse is None else f"{row.surface_mse:.4f}"
        arrived = "" if row.arrived is None else f"{row.arrived:.1%}"
        lines.append(f"{row.method:{width}}  {row.cosine:7.4f}  {surface:>11}  {arrived:>7}".rstrip())
    return "\n".join(lines)


def draw_curves(path: Path, metrics: Sequence[dict[str, Any]]) -> None:
    """Loss and its parts, and the validation cosine, over the steps, as a PNG."""
    import matplotlib  # half a second to import: only where a figure is drawn

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    steps = [line["step"] for line in metrics if "loss" in line]
    for name in ("loss", "surface", "text", "embedding", "target_surface_variance"):
        left.plot(steps, [line[name] for line in metrics if "loss" in line], label=name.replace("_", " "))
    left.set(xlabel="step", yscale="log", title="training loss and its parts")
    left.legend()
    watched = [line for line in metrics if "validation_cosine" in line]
    right.plot([line["step"] for line in watched], [line["validation_cosine"] for line in watched], marker="o")
    right.set(xlabel="step", title="validation cosine")
    figure.savefig(path, dpi=120)
    plt.close(figure)
