"""One optimiser step."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from ..config import EnergyConfig
from ..data.source import EpochOrder, PairBatch, PairDataset
from ..models.energy_flow import EnergyFlow
from .losses import LossParts, energy_flow_loss, number
from .optimiser import clip_gradients, gradient_norms


class NonFiniteLoss(ArithmeticError):
    """A loss or gradient became NaN or infinite. The model and the optimiser are as they were before the step."""

    def __init__(self, step: int, loss: float, indices: Sequence[int], parameter: str, norm: float) -> None:
        self.step, self.indices, self.parameter = step, list(indices), parameter
        super().__init__(
            f"step {step}: the loss is {loss}, and the largest gradient, that of {parameter}, has norm {norm}. "
            f"The batch holds the training pairs {self.indices}"
        )


class StepMetrics(NamedTuple):
    """Scalars of one step, evaluated; means over its micro-batches, except that flows are summed."""

    loss: mx.array
    parts: LossParts
    gradient_norm: mx.array  # before clipping


def step_keys(seed: int, step: int, micro_batch: int) -> tuple[int, mx.array]:
    """A seed for `mx.random`'s own state (dropout) and a key for the noise, made afresh: a resumed run draws alike."""
    dropout, noise = np.random.SeedSequence([seed, step, micro_batch]).generate_state(2, np.uint64)
    return int(dropout), mx.random.key(int(noise))


def micro_batches(data: PairDataset, order: EpochOrder, step: int, count: int) -> list[PairBatch]:
    """The `count` batches of optimiser step `step`."""
    return [data.batch(order.indices(step * count + micro_batch)) for micro_batch in range(count)]


class TrainStep:
    """Forward, backward, clip, update. Only the trainable parameters of the model take part.

    Args:
        model: in training mode.
        optimiser: its learning rate is set anew by each call.
        config: of the run.
    """

    def __init__(self, model: EnergyFlow, optimiser: optim.Optimizer, config: EnergyConfig) -> None:
        self.model, self.optimiser, self.config = model, optimiser, config

        def loss(model: EnergyFlow, batch: PairBatch, key: mx.array, step: int) -> tuple[mx.array, LossParts]:
            return energy_flow_loss(model, config, batch, key=key, training_step=step)

        self._loss_and_gradients = nn.value_and_grad(model, loss)

    def __call__(self, step: int, batches: Sequence[PairBatch], learning_rate: float) -> StepMetrics:
        """Do step `step`, counted from 0, with the mean gradient of `batches`, which are of one size.

        Raises:
            NonFiniteLoss: the loss or a gradient is not finite; nothing was updated.
        """
        metrics, gradients = self.gradients(step, batches)
        names, norms = gradient_norms(gradients)
        gradients = clip_gradients(gradients, self.config.gradient_clip_per_tensor, self.config.gradient_clip)
        metrics = metrics._replace(gradient_norm=mx.linalg.norm(norms))
        mx.eval(metrics, norms, gradients)  # the step's one wait: a bad gradient must not reach the weights
        if not (math.isfinite(number(metrics.loss)) and math.isfinite(number(metrics.gradient_norm))):
            raise _non_finite(step, number(metrics.loss), batches, names, np.array(norms))
        self.optimiser.learning_rate = learning_rate
        self.optimiser.update(self.model, gradients)
        self.model.trained_steps = step + 1
        mx.async_eval(self.model.parameters(), self.optimiser.state)
        return metrics

    def gradients(self, step: int, batches: Sequence[PairBatch]) -> tuple[StepMetrics, Any]:
        """The metrics (without the gradient norm) and the mean gradient over the micro-batches, lazy."""
        share = 1 / len(batches)
        loss, parts, gradients = mx.array(0.0), None, None
        for micro_batch, batch in enumerate(batches):
            dropout_seed, key = step_keys(self.config.seed, step, micro_batch)
            mx.random.seed(dropout_seed)
            (value, new_parts), new = self._loss_and_gradients(self.model, batch, key, step)
            loss = loss + share * value
            parts = new_parts if parts is None else tree_map(mx.add, parts, new_parts)
            gradients = new if gradients is None else tree_map(mx.add, gradients, new)
            # Start now, without waiting: the activations of one micro-batch are freed before the next one's are made.
            mx.async_eval(loss, parts, gradients)
        if len(batches) > 1:
            gradients = tree_map(lambda g: g * share, gradients)
        assert parts is not None
        mean = LossParts(*(part * share for part in parts[:4]), *parts[4:])
        return StepMetrics(loss, mean, mx.array(0.0)), gradients


def _non_finite(
    step: int, loss: float, batches: Sequence[PairBatch], names: list[str], norms: np.ndarray
) -> NonFiniteLoss:
    largest = int(np.argmax(np.where(np.isnan(norms), np.inf, norms)))  # NaN counts as the largest
    indices = [int(index) for batch in batches for index in batch.indices]
    return NonFiniteLoss(step, loss, indices, names[largest], float(norms[largest]))
