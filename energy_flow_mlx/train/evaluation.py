"""How good predictions are on a split: cosine, retrieval, and for a model what its flows did."""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..config import RunConfig
from ..data.source import PairBatch, PairDataset
from ..distributed import ALONE, World
from ..models.energy_flow import EnergyFlow, EnergyFlowOutput
from ..models.shapes import unit_rows
from ..nn.mode import evaluating
from ..scores import Evaluation, Scores
from .decoding import exact_share
from .loss import loss_of, number

RETRIEVED = 10_000  # targets that retrieval looks among: its work grows with their square
ROWS = 1024  # pairs read at a time
Floats = NDArray[np.float32]


def evaluate(model: EnergyFlow, data: PairDataset, config: RunConfig, world: World = ALONE) -> Evaluation:
    """The model in evaluation mode (no dropout, no noise) over all pairs of `data`; its mode is put back.

    Args:
        config: gives the batch size and the weights of the loss.
        world: processes that hold the same model; each takes every `world.size`-th batch, and all get the same result.
    """
    summed: list[tuple[float, ...]] = []  # of each batch: loss, surface, distance, sideways, decoding, over pairs; arrived, ended, collided
    cells = model.config.surface_dim

    def predict(batch: PairBatch) -> Floats:
        out = model(mx.array(batch.input_embedding))
        loss, parts = loss_of(out, model, config, batch)
        mx.eval(out, loss, parts)
        means = (loss, parts.surface, parts.arrival, out.flow.sideways, parts.decoding)
        of_pairs = (len(batch.indices) * number(mean) for mean in means)
        summed.append((*of_pairs, number(parts.arrived), number(parts.ended), _collided(out)))
        return np.array(out.embedding)

    model.processor.reset_room()
    with evaluating(model):
        scores = score(predict, data, config.batch_size, world)
        exact = exact_share(model, data, config.text_max_length) if config.text_decoder_loss_weight else 0.0
    of_batches = _in_order(world.gather(np.array(summed).reshape(-1, 8)), 1)
    sums = np.sum(of_batches, axis=0)
    loss, surface, arrival, sideways, decoding = (float(value) for value in sums[:5] / len(data))
    arrived, ended, collided = (float(value) for value in sums[5:])
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


def score(
    predict: Callable[[PairBatch], Floats], data: PairDataset, batch_size: int = ROWS, world: World = ALONE
) -> Scores:
    """The scores of `predict`, which gives predictions [B, E] for a batch of B pairs. For `world` see `evaluate`."""
    predicted: list[Floats] = []
    targets: list[Floats] = []
    for batch in batches(data, batch_size, world):
        predicted.append(unit_rows(predict(batch)))
        targets.append(unit_rows(batch.target_embedding))
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
