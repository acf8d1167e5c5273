"""How good predictions are on a split: cosine, retrieval, and for a model what its flows did."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..config import RunConfig
from ..data.source import PairBatch, PairDataset
from ..distributed import ALONE, World
from ..models.energy_flow import EnergyFlow, EnergyFlowOutput
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
    x and y, in cells."""

    loss: float
    surface_mse: float
    arrival: float
    arrived: float
    collisions: float
    sideways: float


def evaluate(model: EnergyFlow, data: PairDataset, config: RunConfig, world: World = ALONE) -> Evaluation:
    """The model in evaluation mode (no dropout, no noise) over all pairs of `data`; its mode is put back.

    Args:
        config: gives the batch size and the weights of the loss.
        world: processes that hold the same model; each takes every `world.size`-th batch, and all get the same result.
    """
    training = model.training
    model.eval()
    summed: list[tuple[float, ...]] = []  # of each batch: loss, surface, distance, sideways, over pairs; arrived, ended, collided
    cells = model.config.surface_dim

    def predict(batch: PairBatch) -> Floats:
        out = model(mx.array(batch.input_embedding))
        loss, parts = loss_of(out, model, config, batch)
        mx.eval(out, loss, parts)
        means = (loss, parts.surface, parts.arrival, out.flow.sideways)
        of_pairs = (len(batch.indices) * number(mean) for mean in means)
        summed.append((*of_pairs, number(parts.arrived), number(parts.ended), _collided(out)))
        return np.array(out.embedding)

    scores = score(predict, data, config.batch_size, world)
    model.train(training)
    of_batches = _in_order(world.gather(np.array(summed).reshape(-1, 7)), 1)
    sums = np.sum(of_batches, axis=0)
    loss, surface, arrival, sideways = (float(value) for value in sums[:4] / len(data))
    arrived, ended, collided = (float(value) for value in sums[4:])
    return Evaluation(
        **vars(scores),
        loss=loss,
        surface_mse=surface,
        arrival=arrival,
        arrived=arrived / max(ended, 1),
        collisions=collided / (cells * len(data)),
        sideways=sideways,
    )


def score(
    predict: Callable[[PairBatch], Floats], data: PairDataset, batch_size: int = ROWS, world: World = ALONE
) -> Scores:
    """The scores of `predict`, which gives predictions [B, E] for a batch of B pairs. For `world` see `evaluate`."""
    predicted: list[Floats] = []
    targets: list[Floats] = []
    for batch in batches(data, batch_size, world):
        predicted.append(_normalised(predict(batch)))
        targets.append(_normalised(batch.target_embedding))
    both = [np.concatenate(pair, axis=1) for pair in zip(predicted, targets, strict=True)]
    shares = world.gather(np.concatenate([np.empty((0, 2 * data.dim), np.float32), *both]))
    p, t = map(np.ascontiguousarray, np.split(_in_order(shares, batch_size), 2, axis=1))
    own = np.sum(p * t, axis=1)
    # By an epsilon: equal targets must not outrank each other by rounding.
    better = np.concatenate(
        [
            np.sum(p[at : at + ROWS] @ t[:RETRIEVED].T > own[at : at + ROWS, None] + 1e-6, axis=1)
            for at in range(0, min(len(p), RETRIEVED), ROWS)
        ]
    )
    return Scores(float(np.mean(own)), float(np.mean(better == 0)), float(np.mean(better < 10)))


def batches(data: PairDataset, size: int, world: World = ALONE) -> Iterator[PairBatch]:
    """All pairs in order, of which each process gets every `world.size`-th batch; the last batch may be smaller."""
    starts = range(0, len(data), size)
    for turn in range(0, len(starts), world.size):
        world.mark(f"pair {starts[turn]} of an evaluation")
        if turn + world.rank < len(starts):
            start = starts[turn + world.rank]
            yield data.batch(np.arange(start, min(start + size, len(data))))


def _in_order(shares: list[NDArray[Any]], size: int) -> NDArray[Any]:
    """The rows of all batches in order, from those of each process's batches; a batch has `size` rows, the last one at most."""
    split = [[share[at : at + size] for at in range(0, len(share), size)] for share in shares]
    return np.concatenate([batch for turn in zip_longest(*split) for batch in turn if batch is not None])


def _collided(out: EnergyFlowOutput) -> float:
    """Collected flows that share their cell with an earlier one."""
    flow = out.flow
    return number(flow.reached_z0) + number(flow.reached_zdepth) + number(flow.projected) - number(flow.occupied)


def _normalised(x: NDArray[np.floating]) -> Floats:
    """Rows [N, E] scaled to length 1; a row of zeros stays one, so that its cosine is 0."""
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8)
