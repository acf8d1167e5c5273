"""The loss and its parts."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..config import RunConfig
from ..data.source import PairBatch
from ..distributed import ALONE, World
from ..models.energy_flow import EnergyFlow, EnergyFlowOutput
from ..text.rows import NO_TOKEN


class LossParts(NamedTuple):
    """Scalars of one batch, lazy: means over it, then counts. `text` is 0 where `text_loss_weight` is, `decoding` where
    `text_decoder_loss_weight` is, and all others are where the text decoder learns alone and from no flow.

    target_surface_variance: over the batch, averaged over the cells; falls to 0 if the targets collapse into one.
    """

    surface: mx.array
    text: mx.array
    embedding: mx.array  # mean of 1 - cosine
    arrival: mx.array  # mean distance between flows and their nearest plane at the end of their life
    decoding: mx.array  # cross-entropy of the text decoder, the mean over tokens, in nats
    target_surface_variance: mx.array
    arrived: mx.array  # flows that reached an output plane by moving
    ended: mx.array  # all flows that ended: arrived, projected, dropped
    overflowed: mx.array  # children for which there was no room


MEANS = LossParts._fields[:6]


def number(scalar: mx.array) -> float:
    """A scalar as a Python number; waits for it."""
    value: Any = scalar.item()
    return float(value)


def cosine(a: mx.array, b: mx.array) -> mx.array:
    """The cosine similarity [B] of the rows of a and b [B, E]; 0, with a finite gradient, for a row of zeros."""
    squares = mx.sum(a * a, axis=-1) * mx.sum(b * b, axis=-1)
    # The guard stands under the root: the root's derivative at 0 is infinite.
    return mx.sum(a * b, axis=-1) * mx.rsqrt(mx.maximum(squares, 1e-16))


def _array(values: Any) -> mx.array:
    """NumPy's arrays as MLX's; those of a step that is traced are that already."""
    return values if isinstance(values, mx.array) else mx.array(values)


def energy_flow_loss(
    model: EnergyFlow,
    config: RunConfig,
    batch: PairBatch,
    *,
    key: mx.array | None = None,
    training_step: int | mx.array | None = None,
    world: World = ALONE,
) -> tuple[mx.array, LossParts]:
    """The training loss of a batch.

        surface_loss_weight * MSE(surface, mapper(target)) + text_loss_weight * MSE(text_encoder(input), mapper(input))
        + embedding_loss_weight * mean(1 - cosine(embedding, target)) + arrival_loss_weight * mean(distance to the nearest plane)
        + text_decoder_loss_weight * cross-entropy of the text decoder

    The distance is that of a flow at the end of its life. Without this term z has a gradient only through the softmax of
    collection, which vanishes where a cell holds one flow, and arrival is left to chance. The cross-entropy is that of the target
    texts from the surfaces that the flows leave and, for 1 - text_decoder_flow_share of it, that of both texts of a pair from their
    mapped embeddings. With `part` "decoder" it is the whole loss, and with "corrector" that of the text corrector.

    Args:
        batch: B pairs; for the corrector of a hypothesis and its text.
        key: of the exploration noise.
        training_step: where the displacement schedule stands; None: where the model's training stopped.
        world: the processes that share a batch, of which B pairs are this one's; see `loss_of`.

    Returns:
        The loss, a scalar, and its parts.
    """
    if config.part == "corrector":
        return _without_flows(correcting_loss(model, batch, world), 1.0)
    if config.part == "decoder" and not config.text_decoder_flow_share:
        return _without_flows(decoding_loss(None, model, config, batch, world), config.text_decoder_loss_weight)
    out = model(_array(batch.input_embedding), key=key, training_step=training_step)
    return loss_of(out, model, config, batch, world)


def loss_of(
    out: EnergyFlowOutput, model: EnergyFlow, config: RunConfig, batch: PairBatch, world: World = ALONE
) -> tuple[mx.array, LossParts]:
    """`energy_flow_loss` from what the model gave for the inputs of the batch.

    Several processes get losses and parts whose means, and counts whose sums, are those of the whole batch.
    """
    targets = _array(batch.target_embedding)
    # The mapper's surfaces are targets. With a gradient it would win by drawing all surfaces together.
    target_surface = mx.stop_gradient(model.map_to_surface(targets)).reshape(out.surface.shape)
    text = mx.array(0.0)
    if config.text_loss_weight:
        text_surface = model.text_to_surface(_array(batch.input_ids), _array(batch.attention_mask))
        text = mx.mean(mx.square(text_surface - mx.stop_gradient(out.start)))
    surface = mx.mean(mx.square(out.surface - target_surface))
    embedding = mx.mean(1 - cosine(out.embedding, targets))
    decoding = decoding_loss(out.surface, model, config, batch, world)
    arrival, variance = out.flow.distance, mx.mean(mx.var(target_surface, axis=0))
    if world.size > 1:
        arrival, variance = _of_whole_batch(out, target_surface, world)
    loss = config.text_decoder_loss_weight * decoding
    if config.part == "all":
        loss = loss + (
            config.surface_loss_weight * surface
            + config.text_loss_weight * text
            + config.embedding_loss_weight * embedding
            + config.arrival_loss_weight * arrival
        )
    arrived = out.flow.reached_z0 + out.flow.reached_zdepth
    ended = arrived + out.flow.projected + out.flow.dropped
    return loss, LossParts(surface, text, embedding, arrival, decoding, variance, arrived, ended, out.flow.overflowed)


def _of_whole_batch(out: EnergyFlowOutput, target_surface: mx.array, world: World) -> tuple[mx.array, mx.array]:
    """The parts `arrival` and `target_surface_variance`, which are no means over pairs: they take the number of flows that count, and
    the mean target surface, of the whole batch."""
    living = mx.stop_gradient(out.flow.living.astype(mx.float32)).reshape(1)
    totals = world.sum(mx.concatenate([mx.mean(target_surface, axis=0) / world.size, living]))
    arrival = out.flow.distance * (world.size * living / mx.maximum(totals[-1:], 1.0)).reshape(())
    return arrival, mx.mean(mx.square(target_surface - totals[:-1]))


def decoding_loss(
    flows: mx.array | None, model: EnergyFlow, config: RunConfig, batch: PairBatch, world: World = ALONE
) -> mx.array:
    """The text decoder's part of `energy_flow_loss`, from the surfaces that the flows left [B, S]; 0 where none learns."""
    if not config.text_decoder_loss_weight:
        return mx.array(0.0)
    decoder = model.text_decoder
    assert decoder is not None and batch.target_ids is not None, "a run whose decoder learns has both"
    share, targets = config.text_decoder_flow_share, _array(batch.target_ids)
    loss = mx.array(0.0)
    if share < 1:
        embeddings = mx.concatenate([_array(batch.input_embedding), _array(batch.target_embedding)])
        inputs = mx.where(_array(batch.attention_mask) > 0, _array(batch.input_ids), NO_TOKEN)
        surfaces = model.map_to_surface(embeddings).reshape(len(embeddings), -1)
        loss = (1 - share) * cross_entropy(partial(decoder, surfaces), mx.concatenate([inputs, targets]), world)
    if share > 0 and flows is not None:
        loss = loss + share * cross_entropy(partial(decoder, flows), targets, world)
    return loss


def correcting_loss(model: EnergyFlow, batch: PairBatch, world: World = ALONE) -> mx.array:
    """The cross-entropy of the text corrector: the target texts, given the input texts and both embeddings."""
    assert model.text_corrector is not None and batch.target_ids is not None, "a run whose corrector learns has both"
    hypothesis = mx.where(_array(batch.attention_mask) > 0, _array(batch.input_ids), NO_TOKEN)
    correct = partial(model.text_corrector, _array(batch.target_embedding), _array(batch.input_embedding), hypothesis)
    return cross_entropy(correct, _array(batch.target_ids), world)


def _without_flows(decoding: mx.array, weight: float) -> tuple[mx.array, LossParts]:
    return weight * decoding, LossParts(*[mx.array(0.0)] * len(LossParts._fields))._replace(decoding=decoding)


def cross_entropy(predict: Callable[[mx.array], mx.array], ids: mx.array, world: World = ALONE) -> mx.array:
    """The mean cross-entropy of tokens, in nats, each given all tokens before it. Several processes get values whose mean is that over
    all tokens of the whole batch.

    Args:
        predict: tokens [B, T - 1] -> logits [B, T - 1, V] of the token after each.
        ids: [B, T], start and end token included; NO_TOKEN after the end.
    """
    known, following = mx.maximum(ids[:, :-1], 0), ids[:, 1:]
    there = (following != NO_TOKEN).astype(mx.float32)
    losses = nn.losses.cross_entropy(predict(known), mx.maximum(following, 0))
    return world.size * mx.sum(losses * there) / mx.maximum(world.sum(mx.sum(there).reshape(1)).reshape(()), 1)
