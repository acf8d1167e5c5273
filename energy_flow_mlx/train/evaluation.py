"""How good predictions are on a split: cosine, retrieval, and for a model what its flows did."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..config import RunConfig
from ..data.source import PairBatch, PairDataset
from ..models.energy_flow import EnergyFlow, EnergyFlowOutput
from ..nn.mode import evaluating
from .decoding import exact_share
from .loss import loss_of, number

RETRIEVED = 10_000  # targets that retrieval looks among: its work grows with their square
ROWS = 1024  # pairs read at a time
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Of predictions [N, E] for the N pairs of a split: `cosine`, the mean cosine with the target; `top1` and `top10`, the share
    whose own target is the nearest, or among the ten nearest, of all targets (of the first 10,000). Equal targets share a rank."""

    cosine: float
    top1: float
    top10: float


@dataclass(frozen=True)
class Evaluation(Scores):
    """Also of a model in evaluation mode: means of the loss and of its parts; `arrived`, the share of flows that reached an output
    plane by moving; `collisions`, collected flows beyond the first in a cell, a cell; `sideways`, how far the first flows moved in
    x and y, in cells. Where a text decoder learns, `decoding` is its cross-entropy and `exact` its `exact_share`; else they are 0."""

    loss: float
    surface_mse: float
    arrival: float
    arrived: float
    collisions: float
    sideways: float
    decoding: float = 0.0
    exact: float = 0.0


def evaluate(model: EnergyFlow, data: PairDataset, config: RunConfig) -> Evaluation:
    """The model in evaluation mode (no dropout, no noise) over all pairs of `data`; its mode is put back.

    config: gives the batch size and the weights of the loss.
    """
    sums = np.zeros(5)  # loss, surface, distance, sideways, decoding; over pairs
    counts = np.zeros(3)  # arrived, ended, collided
    cells = model.config.surface_dim

    def predict(batch: PairBatch) -> Floats:
        out = model(mx.array(batch.input_embedding))
        loss, parts = loss_of(out, model, config, batch)
        mx.eval(out, loss, parts)
        means = (loss, parts.surface, parts.arrival, out.flow.sideways, parts.decoding)
        sums[:] += len(batch.indices) * np.array([number(mean) for mean in means])
        counts[:] += number(parts.arrived), number(parts.ended), _collided(out)
        return np.array(out.embedding)

    with evaluating(model):
        scores = score(predict, data, config.batch_size)
        exact = exact_share(model, data, config.text_max_length) if config.text_decoder_loss_weight else 0.0
    loss, surface, arrival, sideways, decoding = (float(value) for value in sums / len(data))
    arrived, ended, collided = (float(value) for value in counts)
    return Evaluation(
        **vars(scores),
        loss=loss,
        surface_mse=surface,
        arrival=arrival,
        arrived=arrived / max(ended, 1),
        collisions=collided / (cells * len(data)),
        sideways=sideways,
        decoding=decoding,
        exact=exact,
    )


def score(predict: Callable[[PairBatch], Floats], data: PairDataset, batch_size: int = ROWS) -> Scores:
    """The scores of `predict`, which gives predictions [B, E] for a batch of B pairs."""
    predicted: list[Floats] = []
    targets: list[Floats] = []
    for batch in batches(data, batch_size):
        predicted.append(_normalised(predict(batch)))
        targets.append(_normalised(batch.target_embedding))
    p, t = np.concatenate(predicted), np.concatenate(targets)
    own = np.sum(p * t, axis=1)
    # By an epsilon: equal targets must not outrank each other by rounding.
    better = np.concatenate(
        [
            np.sum(p[at : at + ROWS] @ t[:RETRIEVED].T > own[at : at + ROWS, None] + 1e-6, axis=1)
            for at in range(0, min(len(p), RETRIEVED), ROWS)
        ]
    )
    return Scores(float(np.mean(own)), float(np.mean(better == 0)), float(np.mean(better < 10)))


def batches(data: PairDataset, size: int) -> Iterator[PairBatch]:
    """All pairs in order; the last batch may be smaller."""
    for start in range(0, len(data), size):
        yield data.batch(np.arange(start, min(start + size, len(data))))


def _collided(out: EnergyFlowOutput) -> float:
    """Collected flows that share their cell with an earlier one."""
    flow = out.flow
    return number(flow.reached_z0) + number(flow.reached_zdepth) + number(flow.projected) - number(flow.occupied)


def _normalised(x: NDArray[np.floating]) -> Floats:
    """Rows [N, E] scaled to length 1; a row of zeros stays one, so that its cosine is 0."""
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
